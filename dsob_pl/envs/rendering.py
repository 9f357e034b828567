"""Rendering MuJoCo without a screen: choosing the backend, and what to install where it is missing."""

from __future__ import annotations

import ctypes.util
import os
import sys

from dsob_pl.errors import UsageError


def choose_backend() -> None:
    """Sets ``MUJOCO_GL`` to EGL where there is no screen and the user has not chosen.

    gymnasium reads the variable when it builds a renderer, so this also works after mujoco has been imported.
    """
    has_screen = sys.platform != "linux" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if not has_screen:
        os.environ.setdefault("MUJOCO_GL", "egl")


def check_backend() -> None:
    """Raises UsageError where EGL is chosen and its library is not installed."""
    if os.environ.get("MUJOCO_GL") == "egl" and ctypes.util.find_library("EGL") is None:
        raise UsageError(
            "rendering without a screen needs EGL, which is not installed; on Debian or Ubuntu: "
            "apt-get install libegl1 libegl-mesa0 libgl1-mesa-dri"
        )
