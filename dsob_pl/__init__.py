"""Distributional Sobolev reinforcement learning (DSDPG) as a PyTorch Lightning experiment framework."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dsob_pl.cli.loading import load_agent
    from dsob_pl.envs import make_env

__version__ = "0.1.0"
__all__ = ["__version__", "load_agent", "make_env"]


def __getattr__(name: str) -> Any:
    # Deferred: importing the package must stay cheap, or every error message waits for torch and Lightning.
    if name == "load_agent":
        from dsob_pl.cli.loading import load_agent

        return load_agent
    if name == "make_env":
        from dsob_pl.envs import make_env

        return make_env
    raise AttributeError(f"module 'dsob_pl' has no attribute '{name}'")
