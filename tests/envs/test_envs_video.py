"""Videos: real MuJoCo frames without a screen, and clear lines for what is missing."""

from __future__ import annotations

import ctypes.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from dsob_pl.envs import make_env, record_video, rendering, run_episodes
from dsob_pl.errors import UsageError

SHORT = {"max_episode_steps": 12}
FRAME = {"width": 96, "height": 80}


def policy(observation: Tensor) -> Tensor:
    return torch.ones(len(observation), 3)


@pytest.mark.skipif(ctypes.util.find_library("EGL") is None, reason="libEGL is not installed")
def test_the_video_shows_the_episode_of_the_seed(tmp_path: Path) -> None:
    imageio = pytest.importorskip("imageio.v2", reason="the extra 'video' is not installed")
    path = tmp_path / "folder" / "hopper.mp4"
    episodes = record_video("Hopper-v5", policy, path, 3, env_kwargs=SHORT | FRAME)
    frames = np.stack(imageio.mimread(path)).astype(float)
    assert frames.shape == (13, 80, 96, 3)
    assert frames[0].std() > 10.0
    assert np.abs(frames[0] - frames[-1]).mean() > 0.5
    assert sorted(p.name for p in path.parent.iterdir()) == ["hopper.mp4"]
    without = run_episodes([make_env("Hopper-v5", env_kwargs=SHORT)], policy, [3], 0.99)
    assert torch.equal(episodes.returns, without.returns)


@pytest.mark.skipif(ctypes.util.find_library("EGL") is None, reason="libEGL is not installed")
def test_a_failing_episode_leaves_no_half_made_file(tmp_path: Path) -> None:
    pytest.importorskip("imageio_ffmpeg", reason="the extra 'video' is not installed")

    def breaks(observation: Tensor) -> Tensor:
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        record_video("Hopper-v5", breaks, tmp_path / "a.mp4", 3, env_kwargs=SHORT | FRAME)
    assert list(tmp_path.iterdir()) == []


def test_missing_parts_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "imageio_ffmpeg", None)
        with pytest.raises(UsageError, match=r'pip install "dsob_pl\[video\]"'):
            record_video("Hopper-v5", policy, tmp_path / "a.mp4", 3)
    pytest.importorskip("imageio_ffmpeg", reason="the extra 'video' is not installed")
    with pytest.raises(UsageError, match=r"ends in \.mp4, got .*a\.gif"):
        record_video("Hopper-v5", policy, tmp_path / "a.gif", 3)
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot be written"):
        record_video("Hopper-v5", policy, tmp_path / "file" / "a.mp4", 3)
    with monkeypatch.context() as patch:
        patch.setenv("MUJOCO_GL", "egl")
        patch.setattr(rendering.ctypes.util, "find_library", lambda name: None)
        with pytest.raises(UsageError, match="apt-get install libegl1 libegl-mesa0 libgl1-mesa-dri"):
            record_video("Hopper-v5", policy, tmp_path / "a.mp4", 3)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_the_backend_is_chosen_only_where_the_user_has_not(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MUJOCO_GL", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(rendering.sys, "platform", "linux")
    monkeypatch.setenv("DISPLAY", ":0")
    rendering.choose_backend()
    assert "MUJOCO_GL" not in rendering.os.environ
    monkeypatch.delenv("DISPLAY")
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    rendering.choose_backend()
    assert rendering.os.environ["MUJOCO_GL"] == "osmesa"
    monkeypatch.delenv("MUJOCO_GL")
    rendering.choose_backend()
    assert rendering.os.environ.pop("MUJOCO_GL") == "egl"
