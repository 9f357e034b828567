"""What the agent reports beside its losses: pure functions of samples, episodes and networks."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from dsob_pl.bellman import gamma_kappa, gamma_kappa_statistics
from dsob_pl.bellman.target import Policy
from dsob_pl.envs import Episodes
from dsob_pl.world_models import Transition, WorldModel
from dsob_pl.world_models.metrics import spread_ratio

# World-model samples per transition for its reported spread.
_SPREAD_SAMPLES = 16


def target_statistics(target: Tensor, scale: Tensor) -> dict[str, Tensor]:
    """Mean target and mean norm of target gradients, where there are any, in units of reward.

    They are not finite as soon as one entry of ``target`` is not.

    Args:
        target: ``[B, M, D]``.
        scale: factor by which rewards were multiplied (0-d).
    """
    statistics = {"target": target[..., 0].mean() / scale}
    if target.shape[-1] > 1:
        statistics["target_gradient_norm"] = target[..., 1:].norm(dim=-1).mean() / scale
    return statistics


def sample_statistics(samples: Tensor, scale: Tensor) -> dict[str, Tensor]:
    """What is logged of the critic's samples at the logging cadence, in units of reward.

    Args:
        samples: predicted ``[E, B, N, D]``.
        scale: factor by which rewards were multiplied (0-d).

    Returns:
        mean value, root mean square spread of the return over noise, and of its gradient where that is part of the
        samples.
    """
    one = samples.shape[-2] == 1
    spread = torch.zeros_like(samples[..., 0, :]) if one else samples.var(-2)
    statistics = {
        "value": samples[..., 0].mean() / scale,
        "return_spread": spread[..., 0].mean().sqrt() / scale,
    }
    if samples.shape[-1] > 1:
        statistics["gradient_spread"] = spread[..., 1:].sum(-1).mean().sqrt() / scale
    return statistics


def evaluation_metrics(episodes: Episodes) -> dict[str, Tensor]:
    """Mean, standard deviation, smallest and largest return and length of ``episodes``, and their discounted return."""
    metrics = {"eval/discounted_return": episodes.discounted_returns.mean()}
    for name, values in (("return", episodes.returns), ("length", episodes.lengths.float())):
        metrics[f"eval/{name}_mean"] = values.mean()
        metrics[f"eval/{name}_std"] = values.std(correction=0)
        metrics[f"eval/{name}_min"] = values.min()
        metrics[f"eval/{name}_max"] = values.max()
    return metrics


def clean_metrics(episodes: Episodes) -> dict[str, Tensor]:
    """Mean and standard deviation of the return of ``episodes`` without the noise of the config."""
    returns = episodes.returns
    return {"eval_clean/return_mean": returns.mean(), "eval_clean/return_std": returns.std(correction=0)}


class Speed:
    """Environment steps and updates per second since the previous measurement."""

    def __init__(self) -> None:
        self._window = (time.perf_counter(), 0, 0)

    def measure(self, step: int, updates: int) -> dict[str, Tensor]:
        """By logged name, given how many steps and updates there have been so far."""
        now = time.perf_counter()
        then, last_step, last_updates = self._window
        self._window = (now, step, updates)
        return {
            "speed/steps_per_second": torch.tensor((step - last_step) / (now - then)),
            "speed/updates_per_second": torch.tensor((updates - last_updates) / (now - then)),
        }


def model_diagnostics(
    model: WorldModel, policy: Policy, transition: Transition, gamma: float, generator: torch.Generator
) -> dict[str, Tensor]:
    """Statistics of gamma*kappa and the world model's spread on ``transition [R]``, by logged name."""
    size = (_SPREAD_SAMPLES, len(transition.r), model.noise_size)
    eps = torch.randn(size, device=transition.r.device, generator=generator)
    factors = gamma_kappa(model, policy, transition.s, transition.a, eps[0], gamma)
    found = {**gamma_kappa_statistics(factors), "world_model/spread": spread_ratio(model, transition, eps)}
    return {name: value.detach() for name, value in found.items()}
