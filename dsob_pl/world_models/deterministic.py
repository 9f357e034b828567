"""Deterministic regression of the one-step dynamics, the model that MAGE is compared on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dsob_pl.networks import MLP
from dsob_pl.world_models.base import Prediction, Transition, WorldModel
from dsob_pl.world_models.heads import LearnedSigma, TargetScale, TerminationHead, check_weight


class Deterministic(WorldModel):
    """Predicts the conditional mean of (s', r); ``noise_size`` is 0.

    Fitted by Gaussian maximum likelihood with one sigma per component, which weights the squared error of each
    component by how well it can be predicted. Sigma plays no part in the prediction. The world model that Debes
    and Tuytelaars (2026) give MAGE; that of its authors' code draws from an :class:`Ensemble` of Gaussians.

    Args:
        observation_size: S.
        action_size: A.
        hidden: widths of the hidden layers.
        termination_hidden: widths of the hidden layers of the termination head.
        activation: name of a twice differentiable activation.
        termination_weight: factor of the termination head's cross entropy.
        differentiate_termination: the probability of termination is differentiated in (s, a); otherwise a constant.
        learning_rate: of the optimizer where the model is fitted alone; an agent brings its own.
        max_gradient_norm: gradients are clipped to this global norm, likewise.

    Raises:
        UsageError: a width below 1, or a negative weight.
    """

    noise_size = 0

    def __init__(
        self,
        observation_size: int,
        action_size: int,
        hidden: Sequence[int] = (256, 256),
        termination_hidden: Sequence[int] = (64, 64),
        activation: str = "silu",
        termination_weight: float = 1.0,
        differentiate_termination: bool = True,
        learning_rate: float = 1e-3,
        max_gradient_norm: float = 100.0,
    ) -> None:
        super().__init__(observation_size, action_size, learning_rate, max_gradient_norm)
        self.termination_weight = check_weight("termination_weight", termination_weight)
        self.target_scale = TargetScale(observation_size)
        self.mean = MLP(observation_size + action_size, hidden, observation_size + 1, activation)
        self.sigma = LearnedSigma(observation_size + 1)
        self.termination = TerminationHead(
            observation_size, action_size, termination_hidden, activation, differentiate_termination
        )

    def forward(self, s: Tensor, a: Tensor, eps: Tensor) -> Prediction:
        """``s [..., S], a [..., A], eps [..., 0] -> Prediction``, differentiable in s and a."""
        s_next, r = self.target_scale.decode(s, self.mean(torch.cat([s, a], -1)))
        return Prediction(s_next, r, self.termination.continuation(s, a, s_next))

    def loss(self, transition: Transition, noise: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Negative log-likelihood of (s', r) per transition, plus the termination head's cross entropy.

        Args:
            transition: ``[B]``.
            noise: ``[B, 0]``.

        Returns:
            scalar loss in nats of the normalised target; statistics loss, reconstruction, termination_loss, sigma.
        """
        s, a, r, s_next, terminated = transition
        residual = self.target_scale.encode(s, s_next, r) - self.mean(torch.cat([s, a], -1))
        reconstruction = -self.sigma.log_prob(residual).mean()
        termination_loss = self.termination.loss(s, a, s_next, terminated)
        loss = reconstruction + self.termination_weight * termination_loss
        return loss, {
            "loss": loss.detach(),
            "reconstruction": reconstruction.detach(),
            "termination_loss": termination_loss.detach(),
            "sigma": self.sigma().detach().exp().mean(),
        }

    @torch.no_grad()
    def log_likelihood(self, transition: Transition, noise: Tensor) -> Tensor:
        """``log p(s', r | s, a)`` of the normalised target in nats, exact ``[...]``; ``noise`` is unused."""
        s, a, r, s_next, _ = transition
        return self.sigma.log_prob(self.target_scale.encode(s, s_next, r) - self.mean(torch.cat([s, a], -1)))

    def update_statistics(self, transition: Transition) -> None:
        """Takes the state differences and rewards of ``transition`` into the running scale of the targets."""
        self.target_scale.update_from(transition.s, transition.s_next, transition.r)
