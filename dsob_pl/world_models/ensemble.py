"""Probabilistic ensemble of the one-step dynamics."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dsob_pl.errors import UsageError
from dsob_pl.networks.mlp import EnsembleMLP
from dsob_pl.world_models.base import Prediction, Transition, WorldModel
from dsob_pl.world_models.heads import TargetScale, TerminationHead, check_weight, gaussian_log_density


class Ensemble(WorldModel):
    """E networks, each a Gaussian of (s', r) with its own mean and standard deviation at every (s, a).

    A draw chooses a member and then a point of its Gaussian, so the model's law is the mixture. Members see the same
    transitions and differ in their initial weights. The state difference and the reward are normalised by their running
    scale; termination has a head of its own. The noise of :meth:`forward` is ``[1 member | S+1 Gaussian]``.
    Source: Chua et al. 2018 (PETS), with members chosen anew at every step (TS1), log std softly bounded.

    Args:
        observation_size: S.
        action_size: A.
        members: E.
        hidden: widths of the hidden layers.
        termination_hidden: widths of the hidden layers of the termination head.
        activation: name of a twice differentiable activation.
        termination_weight: factor of the termination head's cross entropy.
        differentiate_termination: the probability of termination is differentiated in (s, a); otherwise a constant.
        minimum_sigma: lower bound of the standard deviations, in those of the targets.
        maximum_sigma: upper bound.
        learning_rate: of the optimizer where the model is fitted alone; an agent brings its own.
        max_gradient_norm: gradients are clipped to this global norm, likewise.

    Raises:
        UsageError: no members, a width below 1, a negative weight, or sigmas out of order.
    """

    def __init__(
        self,
        observation_size: int,
        action_size: int,
        members: int = 5,
        hidden: Sequence[int] = (256, 256),
        termination_hidden: Sequence[int] = (64, 64),
        activation: str = "silu",
        termination_weight: float = 1.0,
        differentiate_termination: bool = True,
        minimum_sigma: float = 0.01,
        maximum_sigma: float = 2.0,
        learning_rate: float = 1e-3,
        max_gradient_norm: float = 100.0,
    ) -> None:
        super().__init__(observation_size, action_size, learning_rate, max_gradient_norm)
        if members < 1:
            raise UsageError(f"world_model.members: expected at least 1, got {members}")
        if not 0 < minimum_sigma < maximum_sigma < math.inf:
            given = f"{minimum_sigma}, {maximum_sigma}"
            raise UsageError(f"world_model: expected 0 < minimum_sigma < maximum_sigma, got {given}")
        self.members = members
        self.noise_size = observation_size + 2
        self.termination_weight = check_weight("termination_weight", termination_weight)
        self.low, self.range = math.log(minimum_sigma), math.log(maximum_sigma / minimum_sigma)
        self.target_scale = TargetScale(observation_size)
        self.gaussians = EnsembleMLP(
            members, observation_size + action_size, hidden, 2 * (observation_size + 1), activation
        )
        self.termination = TerminationHead(
            observation_size, action_size, termination_hidden, activation, differentiate_termination
        )

    def _laws(self, s: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation of every member, ``[E, ..., S+1]`` each."""
        mean, raw = self.gaussians(torch.cat([s, a], -1).unsqueeze(0)).chunk(2, -1)
        return mean, self.low + self.range * raw.sigmoid()

    def _chosen(self, laws: tuple[Tensor, Tensor], eps: Tensor) -> tuple[Tensor, Tensor]:
        """Those of the members that ``eps [...]`` chooses, ``[..., S+1]`` each."""
        choice = (torch.special.ndtr(eps) * self.members).long().clamp(max=self.members - 1)
        # A weighted sum with one weight of 1, which broadcasts and vectorises where an index would not.
        one_hot = (choice.unsqueeze(0) == self._numbers(choice)).to(eps.dtype).unsqueeze(-1)
        mean, log_std = ((one_hot * x).sum(0) for x in laws)
        return mean, log_std

    def _numbers(self, like: Tensor) -> Tensor:
        """0..E-1 as ``[E, 1, ..., 1]`` over the dimensions of ``like``."""
        return torch.arange(self.members, device=like.device).view(-1, *[1] * like.dim())

    def forward(self, s: Tensor, a: Tensor, eps: Tensor) -> Prediction:
        """``s [..., S], a [..., A], eps [..., S+2] -> Prediction``, differentiable in s and a with eps fixed."""
        mean, log_std = self._chosen(self._laws(s, a), eps[..., 0])
        s_next, r = self.target_scale.decode(s, mean + log_std.exp() * eps[..., 1:])
        return Prediction(s_next, r, self.termination.continuation(s, a, s_next))

    @torch.no_grad()
    def infer_noise(self, transition: Transition, eps: Tensor) -> Tensor:
        """See :meth:`WorldModel.infer_noise`: the member is drawn from its posterior, the rest is what remains.

        A member's posterior probability is proportional to its density at the transition, all members being equally
        probable before.
        """
        # The transition may have fewer dimensions than eps: those that are missing come behind the members'.
        missing = [1] * (eps.dim() - 1 - transition.r.dim())
        mean, log_std = (x.view(self.members, *missing, *x.shape[1:]) for x in self._laws(transition.s, transition.a))
        laws = mean, log_std
        target = self.target_scale.encode(transition.s, transition.s_next, transition.r)
        posterior = self._log_density(laws, target).softmax(0)
        below = posterior.cumsum(0)
        uniform = torch.special.ndtr(eps[..., 0])  # [...], the posterior [E, ...] broadcasts to it
        # With the uniform number in the posterior's piece of member e, its place within the piece is uniform again.
        choice = (uniform >= below[:-1]).sum(0)
        one_hot = (choice.unsqueeze(0) == self._numbers(choice)).to(uniform.dtype)
        start, width = ((one_hot * x).sum(0) for x in (below - posterior, posterior))
        place = ((uniform - start) / width.clamp_min(torch.finfo(width.dtype).tiny)).clamp(1e-3, 1 - 1e-3)
        member = torch.special.ndtri((choice + place) / self.members)
        mean, log_std = self._chosen(laws, member)
        return torch.cat([member.unsqueeze(-1), (target - mean) / log_std.exp()], -1)

    @staticmethod
    def _log_density(laws: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
        """Of the normalised ``target [..., S+1]`` under every member: ``[E, ...]``."""
        mean, log_std = laws
        return gaussian_log_density(target - mean, log_std)

    def loss(self, transition: Transition, noise: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Negative log-likelihood of (s', r), summed over members, plus the termination head's cross entropy.

        Args:
            transition: ``[B]``.
            noise: ``[B, 0]``.

        Returns:
            scalar loss in nats of the normalised target; statistics loss, reconstruction (mean over members),
            termination_loss, sigma.
        """
        s, a, r, s_next, terminated = transition
        laws = self._laws(s, a)
        each = -self._log_density(laws, self.target_scale.encode(s, s_next, r)).mean(-1)  # [E]
        termination_loss = self.termination.loss(s, a, s_next, terminated)
        loss = each.sum() + self.termination_weight * termination_loss
        return loss, {
            "loss": loss.detach(),
            "reconstruction": each.detach().mean(),
            "termination_loss": termination_loss.detach(),
            "sigma": laws[1].detach().exp().mean(),
        }

    @torch.no_grad()
    def log_likelihood(self, transition: Transition, noise: Tensor) -> Tensor:
        """``log p(s', r | s, a)`` of the mixture, of the normalised target in nats, exact; ``noise`` is unused."""
        target = self.target_scale.encode(transition.s, transition.s_next, transition.r)
        density = self._log_density(self._laws(transition.s, transition.a), target)
        return density.logsumexp(0) - math.log(self.members)

    def update_statistics(self, transition: Transition) -> None:
        """Takes the state differences and rewards of ``transition`` into the running scale of the targets."""
        self.target_scale.update_from(transition.s, transition.s_next, transition.r)
