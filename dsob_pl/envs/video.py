"""One evaluation episode as a video of the environment's own frames, with or without a screen."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor

from dsob_pl.envs.factory import make_env
from dsob_pl.envs.rollout import Episodes, run_episodes
from dsob_pl.envs.stepping import env_name
from dsob_pl.errors import UsageError


def record_video(
    env_id: str,
    policy: Callable[[Tensor], Tensor],
    path: str | Path,
    seed: int,
    *,
    env_kwargs: dict[str, Any] | None = None,
    noise: Sequence[Callable[[gymnasium.Env], gymnasium.Env]] | None = None,
    gamma: float = 0.99,
    device: torch.device | str | None = None,
) -> Episodes:
    """Writes one episode to an mp4 file, from reset to end, and returns its statistics.

    Args:
        env_id: as in ``make_env``; the environment must offer the render mode ``rgb_array``.
        policy: raw observations [1, S] float32 to actions [1, A].
        path: the file to write; its folder is made, a file that is there is replaced.
        seed: reset seed; the episode equals the one that ``run_episodes`` runs with this seed.
        env_kwargs: as in ``make_env``.
        noise: as in ``make_env``.
        gamma: discount of the returned statistics.
        device: where the policy wants its observations.

    Raises:
        UsageError: the extra ``video`` or EGL is not installed, the environment has no frames, or the file cannot be
            written.
    """
    try:
        import imageio.v2 as imageio
        import imageio_ffmpeg  # noqa: F401  (the writer looks for it by itself, too late for a clear error)
    except ImportError as error:
        raise UsageError('writing a video needs an extra: pip install "dsob_pl[video]"') from error
    path = Path(path)
    if path.suffix != ".mp4":
        raise UsageError(f"video: expected a file name that ends in .mp4, got '{path}'")
    partial = path.with_name(f".{path.stem}.partial.mp4")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.touch()
    except OSError as error:
        raise UsageError(f"video: '{path}' cannot be written: {error.strerror}") from error
    env = None
    try:
        env = make_env(env_id, render_mode="rgb_array", env_kwargs=env_kwargs, noise=noise)
        # 2 keeps frames as they are but for odd sizes, which the codec refuses; the default pads to multiples of 16
        writer = imageio.get_writer(partial, fps=env.metadata.get("render_fps") or 30, macro_block_size=2)
        # the writer's own context manager leaves its process running when an error passes through
        with contextlib.closing(writer):
            episodes = run_episodes([_Filmed(env, writer)], policy, [seed], gamma, device)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
        if env is not None:
            env.close()
    return episodes


class _Filmed(gymnasium.Wrapper):
    """Appends a frame to the video after each reset and step."""

    def __init__(self, env: gymnasium.Env, writer: Any) -> None:
        super().__init__(env)
        self._writer = writer

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        result = self.env.reset(**kwargs)
        self._append()
        return result

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        result = self.env.step(action)
        self._append()
        return result

    def _append(self) -> None:
        frame: Any = self.env.render()
        if not isinstance(frame, np.ndarray):
            raise UsageError(f"video: '{env_name(self.env)}' does not render frames (render mode rgb_array)")
        self._writer.append_data(frame)
