"""Conditional normalizing flow of the one-step dynamics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dsob_pl.errors import UsageError
from dsob_pl.networks import MLP
from dsob_pl.world_models.base import Prediction, Transition, WorldModel
from dsob_pl.world_models.heads import TargetScale, TerminationHead, gaussian_log_density


class Flow(WorldModel):
    """``(s', r) = f(eps; s, a)`` with an invertible f: exact likelihood, and noise inferred exactly by inversion.

    Coupling layers (Dinh et al. 2014) of monotonic rational-quadratic splines (Durkan et al. 2019), conditioned on
    (s, a), on the state difference and reward normalised by their running scale. A coupling layer takes one evaluation
    of its network in either direction, so that sampling costs what the likelihood costs. Termination has a head of its
    own. The noise of :meth:`forward` has S+1 components.

    Args:
        observation_size: S.
        action_size: A.
        transforms: coupling layers, each of which moves half of the components (rounded down), the reward first.
        bins: of each spline, within 5 standard deviations; beyond them it is the identity.
        hidden: widths of the hidden layers of each coupling layer's network.
        termination_hidden: widths of the hidden layers of the termination head.
        activation: name of a twice differentiable activation.
        termination_weight: factor of the termination head's cross entropy.
        differentiate_termination: the probability of termination is differentiated in (s, a); otherwise a constant.
        noise_floor: standard deviation of the noise that is added to the targets in the loss, in those of the targets:
            a density of noiseless components has no maximum. 0 is without.
        learning_rate: of the optimizer where the model is fitted alone; an agent brings its own.
        max_gradient_norm: gradients are clipped to this global norm, likewise.

    Raises:
        UsageError: zuko is not installed, a size below 1, or a negative noise floor.
    """

    def __init__(
        self,
        observation_size: int,
        action_size: int,
        transforms: int = 4,
        bins: int = 8,
        hidden: Sequence[int] = (128, 128),
        termination_hidden: Sequence[int] = (64, 64),
        activation: str = "silu",
        termination_weight: float = 1.0,
        differentiate_termination: bool = True,
        noise_floor: float = 0.01,
        learning_rate: float = 1e-3,
        max_gradient_norm: float = 100.0,
    ) -> None:
        super().__init__(observation_size, action_size, learning_rate, max_gradient_norm)
        try:
            from zuko.transforms import MonotonicRQSTransform
        except ModuleNotFoundError as error:
            raise UsageError("world_model: Flow needs the package zuko; pip install 'dsob_pl[flow]'") from error
        if transforms < 1 or bins < 2:
            raise UsageError(f"world_model: expected transforms >= 1 and bins >= 2, got {transforms} and {bins}")
        if not noise_floor >= 0:
            raise UsageError(f"world_model.noise_floor: expected a number of at least 0, got {noise_floor}")
        self.noise_size = observation_size + 1
        self.termination_weight = termination_weight
        self.noise_floor = noise_floor
        self.target_scale = TargetScale(observation_size)
        size = observation_size + 1
        self.couplings = nn.ModuleList(
            _Coupling(size, observation_size + action_size, bins, hidden, activation, MonotonicRQSTransform)
            for _ in range(transforms)
        )
        self.termination = TerminationHead(
            observation_size, action_size, termination_hidden, activation, differentiate_termination
        )

    @property
    def loss_noise_size(self) -> int:
        """S+1: the noise that is added to the targets."""
        return self.noise_size

    def forward(self, s: Tensor, a: Tensor, eps: Tensor) -> Prediction:
        """``s [..., S], a [..., A], eps [..., S+1] -> Prediction``, differentiable in s and a with eps fixed."""
        s_next, r = self.target_scale.decode(s, self._sample(s, a, eps.expand(*s.shape[:-1], -1)))
        return Prediction(s_next, r, self.termination.continuation(s, a, s_next))

    @torch.no_grad()
    def infer_noise(self, transition: Transition, eps: Tensor) -> Tensor:
        """See :meth:`WorldModel.infer_noise`: the transition determines all of it, ``eps`` gives the shape only."""
        target = self.target_scale.encode(transition.s, transition.s_next, transition.r)
        return self._noise(transition.s, transition.a, target)[0].expand(*eps.shape[:-1], -1)

    def _sample(self, s: Tensor, a: Tensor, eps: Tensor) -> Tensor:
        """Normalised target ``[..., S+1]`` of noise ``eps [..., S+1]``."""
        context = torch.cat([s, a], -1)
        for coupling in reversed(self.couplings):
            eps = coupling.inverse(eps, context)  # type: ignore[operator]
        return eps

    def _noise(self, s: Tensor, a: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """The inverse of :meth:`_sample`, and the logarithm of its Jacobian's determinant ``[...]``."""
        context = torch.cat([s, a], -1)
        log_determinant = target.new_zeros(())
        for coupling in self.couplings:
            target, log_slope = coupling(target, context)
            log_determinant = log_determinant + log_slope
        return target, log_determinant

    def _log_density(self, s: Tensor, a: Tensor, target: Tensor) -> Tensor:
        eps, log_determinant = self._noise(s, a, target)
        return log_determinant + gaussian_log_density(eps, torch.zeros_like(eps))

    def loss(self, transition: Transition, noise: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Negative log-likelihood of (s', r) plus the noise floor, and the termination head's cross entropy.

        Args:
            transition: ``[B]``.
            noise: standard normal ``[B, S+1]``.

        Returns:
            scalar loss in nats of the normalised target; statistics loss, reconstruction, termination_loss.
        """
        s, a, r, s_next, terminated = transition
        target = self.target_scale.encode(s, s_next, r) + self.noise_floor * noise
        reconstruction = -self._log_density(s, a, target).mean()
        termination_loss = self.termination.loss(s, a, s_next, terminated)
        loss = reconstruction + self.termination_weight * termination_loss
        return loss, {
            "loss": loss.detach(),
            "reconstruction": reconstruction.detach(),
            "termination_loss": termination_loss.detach(),
        }

    @torch.no_grad()
    def log_likelihood(self, transition: Transition, noise: Tensor) -> Tensor:
        """``log p(s', r | s, a)`` of the normalised target in nats, exact ``[...]``; ``noise`` is unused."""
        s, a, r, s_next, _ = transition
        return self._log_density(s, a, self.target_scale.encode(s, s_next, r))

    def update_statistics(self, transition: Transition) -> None:
        """Takes the state differences and rewards of ``transition`` into the running scale of the targets."""
        self.target_scale.update_from(transition.s, transition.s_next, transition.r)


class _Coupling(nn.Module):
    """Moves the last components ``y = spline(x; the others, context)`` and puts them first: a layer of its own turns.

    Not zuko's own coupling layers: those with two passes evaluate the network twice to sample, and the others find
    their halves by ``nonzero``, which neither ``torch.func.vmap`` nor ``torch.compile`` can do.

    Args:
        size: components D, at least 2.
        context: size of what else the spline depends on.
        bins: of the spline.
        hidden: widths of the hidden layers.
        activation: name of a twice differentiable activation.
        spline: builds the invertible elementwise map from widths, heights and derivatives.
    """

    def __init__(
        self, size: int, context: int, bins: int, hidden: Sequence[int], activation: str, spline: Callable[..., Any]
    ) -> None:
        super().__init__()
        self.moved, self.kept = size // 2, size - size // 2
        self.spline, self.sizes = spline, (bins, bins, bins - 1)
        self.mlp = MLP(self.kept + context, hidden, self.moved * sum(self.sizes), activation)

    def _spline(self, kept: Tensor, context: Tensor) -> Any:
        parameters = self.mlp(torch.cat([kept, context], -1)).unflatten(-1, (self.moved, -1))
        return self.spline(*parameters.split(self.sizes, -1))

    def forward(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """``x [..., D], context [..., C] -> y [..., D]`` and the logarithm of the determinant ``[...]``."""
        kept, moved = x.split([self.kept, self.moved], -1)
        moved, log_slope = self._spline(kept, context).call_and_ladj(moved)
        return torch.cat([moved, kept], -1), log_slope.sum(-1)

    def inverse(self, y: Tensor, context: Tensor) -> Tensor:
        """``y [..., D], context [..., C] -> x [..., D]``."""
        moved, kept = y.split([self.moved, self.kept], -1)
        return torch.cat([kept, self._spline(kept, context).inv(moved)], -1)
