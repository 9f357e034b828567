"""Conditional normalizing flow of the one-step dynamics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dsob_pl.errors import UsageError
from dsob_pl.networks.mlp import activation_by_name, check_widths
from dsob_pl.world_models.base import Prediction, Transition, WorldModel
from dsob_pl.world_models.heads import TargetScale, TerminationHead, check_weight, gaussian_log_density


class Flow(WorldModel):
    """``(s', r) = f(eps; s, a)`` with an invertible f: exact likelihood, and noise inferred exactly by inversion.

    Coupling layers of monotonic rational-quadratic splines (Durkan et al. 2019) from the library zuko, conditioned on
    (s, a), on the state difference and reward normalised by their running scale. Coupling layers are as fast in one
    direction as in the other. Termination has a head of its own. The noise of :meth:`forward` has S+1 components.

    Args:
        observation_size: S.
        action_size: A.
        transforms: coupling layers.
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
        UsageError: zuko is not installed, a size below 1, a negative weight, or a negative noise floor.
    """

    def __init__(
        self,
        observation_size: int,
        action_size: int,
        transforms: int = 3,
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
            from zuko.flows import NSF
        except ModuleNotFoundError as error:
            raise UsageError("world_model: Flow needs the package zuko; pip install 'dsob_pl[flow]'") from error
        if transforms < 1 or bins < 2:
            raise UsageError(f"world_model: expected transforms >= 1 and bins >= 2, got {transforms} and {bins}")
        check_widths(hidden)
        if not noise_floor >= 0:
            raise UsageError(f"world_model.noise_floor: expected a number of at least 0, got {noise_floor}")
        self.noise_size = observation_size + 1
        self.termination_weight = check_weight("termination_weight", termination_weight)
        self.noise_floor = noise_floor
        self.target_scale = TargetScale(observation_size)
        self.flow = NSF(
            observation_size + 1,
            observation_size + action_size,
            bins=bins,
            transforms=transforms,
            passes=2,
            hidden_features=tuple(hidden),
            activation=type(activation_by_name(activation)),
        )
        self.termination = TerminationHead(
            observation_size, action_size, termination_hidden, activation, differentiate_termination
        )

    @property
    def loss_noise_size(self) -> int:
        """S+1: the noise that is added to the targets."""
        return self.noise_size

    def _layers(self, s: Tensor, a: Tensor) -> list[Any]:
        """The coupling layers at (s, a), in order from normalised targets ``[..., S+1]`` to noise.

        One by one, for the composition that zuko makes of them is more than ``torch.compile`` can trace.
        """
        context = torch.cat([s, a], -1)
        return [layer(context) for layer in self.flow.transform.transforms]

    def _target(self, s: Tensor, a: Tensor, eps: Tensor) -> Tensor:
        """The normalised target ``[..., S+1]`` that the noise ``eps`` is sent to, at (s, a)."""
        target = eps
        for layer in reversed(self._layers(s, a)):
            target = layer.inv(target)
        return target

    def forward(self, s: Tensor, a: Tensor, eps: Tensor) -> Prediction:
        """``s [..., S], a [..., A], eps [..., S+1] -> Prediction``, differentiable in s and a with eps fixed."""
        s_next, r = self.target_scale.decode(s, self._target(s, a, eps.expand(*s.shape[:-1], -1)))
        return Prediction(s_next, r, self.termination.continuation(s, a, s_next))

    @torch.no_grad()
    def infer_noise(self, transition: Transition, eps: Tensor) -> Tensor:
        """See :meth:`WorldModel.infer_noise`: the transition determines all of it, ``eps`` gives the shape only."""
        noise = self.target_scale.encode(transition.s, transition.s_next, transition.r)
        for layer in self._layers(transition.s, transition.a):
            noise = layer(noise)
        return noise.expand(*eps.shape[:-1], -1)

    def _log_density(self, s: Tensor, a: Tensor, target: Tensor) -> Tensor:
        eps, log_determinant = target, torch.zeros_like(target[..., 0])
        for layer in self._layers(s, a):
            eps, expansion = layer.call_and_ladj(eps)
            log_determinant = log_determinant + expansion
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
