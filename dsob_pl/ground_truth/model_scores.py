"""How far a learned one-step model is from the problem that it is a model of."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dsob_pl.envs.problems.base import Problem
from dsob_pl.ground_truth.rollout import row_gradients
from dsob_pl.ground_truth.scores import energy_distance, relative_error, units
from dsob_pl.world_models import WorldModel

Sampler = Callable[[Tensor, Tensor, Tensor], Tensor]


def model_scores(
    model: WorldModel,
    problem: Problem,
    s: Tensor,
    a: Tensor,
    samples: int,
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """Energy distance and error of the mean Jacobian of ``(s', r)`` given (s, a), in the problem's own units.

    ``energy_distance``: of the joint law of (s', r), unbiased, averaged over rows; each component in units of the
    truth's pooled standard deviation within rows or, where a component has no noise, over rows.
    ``jacobian_error``: ``sqrt(sum |J_model - J|_F^2 / sum |J|_F^2)`` over rows, J the Jacobian d(s', r)/d(s, a)
    averaged over noise. The sampling variance of both means is subtracted, so that the right model scores 0 on average.
    Only the mean Jacobian is asked for, since only that is identified: a model that draws its noise differently at
    each (s, a) can have the right law of (s', r), and with it the right mean Jacobian, and another law of Jacobians.

    Args:
        model: its samples are brought from the networks' units to the problem's by its own scales.
        problem: the truth.
        s: ``[R, S]``, unnormalised.
        a: ``[R, A]``.
        samples: M, at least 2, drawn independently of model and problem.
        generator: of the noise, on the device of ``s``.

    Returns:
        0-d tensors by name, without a prefix.
    """

    def predicted(s: Tensor, a: Tensor, eps: Tensor) -> Tensor:
        prediction = model(model.normalizer(s), a, eps)
        reward = model.reward_scale.inverse(prediction.r)
        return torch.cat([model.normalizer.inverse(prediction.s_next), reward.unsqueeze(-1)], -1)

    def real(s: Tensor, a: Tensor, eps: Tensor) -> Tensor:
        outcome = problem(s, a, eps)
        return torch.cat([outcome.s_next, outcome.r.unsqueeze(-1)], -1)

    learned, *learned_jacobian = _samples_and_jacobian(predicted, s, a, model.noise_size, samples, generator)
    true, *true_jacobian = _samples_and_jacobian(real, s, a, problem.noise_size, samples, generator)
    return {
        "energy_distance": energy_distance(learned, true, units(true)),
        "jacobian_error": relative_error(*learned_jacobian, *true_jacobian),
    }


def _samples_and_jacobian(
    sampler: Sampler, s: Tensor, a: Tensor, noise_size: int, samples: int, generator: torch.Generator | None
) -> tuple[Tensor, Tensor, Tensor]:
    """M samples ``[R, M, S+1]``, the mean of their Jacobians ``[R, S+1, S+A]`` and that mean's sampling variance."""
    rows = []
    # Lightning validates in inference mode, in which nothing can be differentiated. One row at a time bounds memory.
    with torch.inference_mode(False), torch.enable_grad():
        for s_row, a_row in zip(s.detach(), a.detach()):
            first_s, first_a = (x.repeat(samples, 1).requires_grad_() for x in (s_row, a_row))
            eps = torch.randn(samples, noise_size, dtype=s.dtype, device=s.device, generator=generator)
            out = sampler(first_s, first_a, eps)
            leaves = (first_s, first_a)
            jacobian = torch.stack([row_gradients(y, leaves, keep_graph=True) for y in out.unbind(-1)], 1)
            rows.append((out.detach(), jacobian.mean(0), jacobian.var(0) / samples))
    out, mean, variance = (torch.stack(x) for x in zip(*rows))
    return out, mean, variance
