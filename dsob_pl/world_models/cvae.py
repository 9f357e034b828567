"""Conditional variational autoencoder of the one-step dynamics, the method's stochastic world model."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dsob_pl.errors import UsageError
from dsob_pl.networks import MLP
from dsob_pl.world_models.base import Prediction, Transition, WorldModel
from dsob_pl.world_models.heads import LearnedSigma, TargetScale, TerminationHead, check_weight

_LOG_STD_BOUND = 5.0


class CVAE(WorldModel):
    """Conditional VAE ``(s', r) = decode(s, a, z) + sigma * e`` with a learned prior ``z ~ p(z | s, a)``.

    Prior, encoder ``q(z | s, a, s', r)`` and decoder are Gaussian with diagonal covariance; the decoder predicts
    state difference and reward, each normalised by its running mean and standard deviation, and has one learned
    sigma per component. Termination has a head of its own. The noise of :meth:`forward` is laid out as
    ``[latent | S+1 decoder | 1 termination]``. Sources: Kingma and Welling 2014; Sohn et al. 2015; learned sigma:
    Rybkin et al. 2021.

    Args:
        observation_size: S.
        action_size: A.
        latent_size: size L of z.
        hidden: widths of the hidden layers of encoder and decoder.
        prior_hidden: widths of the hidden layers of the prior.
        termination_hidden: widths of the hidden layers of the termination head.
        activation: name of a twice differentiable activation.
        kl_weight: factor of the KL divergence; 1 is the evidence lower bound.
        termination_weight: factor of the termination head's cross entropy.
        sample_termination: continuation is a sampled 0 or 1, a constant, in place of a probability.
        differentiate_termination: the probability of termination is differentiated in (s, a); otherwise a constant.
        sample_decoder_noise: samples include the decoder's noise. Without it (an ablation) they lose variance, and
            inferred noise no longer reproduces the real next state.
        initial_sigma: decoder sigma at the start, in standard deviations of the targets.
        minimum_sigma: softly enforced lower bound of sigma; noiseless dynamics would drive it to zero.
        maximum_sigma: softly enforced upper bound of sigma.
        learning_rate: of the optimizer where the model is fitted alone; an agent brings its own.
        max_gradient_norm: gradients are clipped to this global norm, likewise.

    Raises:
        UsageError: a latent size or width below 1, a negative weight, or sigmas out of order.
    """

    def __init__(
        self,
        observation_size: int,
        action_size: int,
        latent_size: int = 8,
        hidden: Sequence[int] = (256, 256),
        prior_hidden: Sequence[int] = (64,),
        termination_hidden: Sequence[int] = (64, 64),
        activation: str = "silu",
        kl_weight: float = 1.0,
        termination_weight: float = 1.0,
        sample_termination: bool = False,
        differentiate_termination: bool = True,
        sample_decoder_noise: bool = True,
        initial_sigma: float = 0.3,
        minimum_sigma: float = 0.01,
        maximum_sigma: float = 2.0,
        learning_rate: float = 1e-3,
        max_gradient_norm: float = 100.0,
    ) -> None:
        super().__init__(observation_size, action_size, learning_rate, max_gradient_norm)
        if latent_size < 1:
            raise UsageError(f"world_model.latent_size: expected an integer of at least 1, got {latent_size}")
        check_weight("kl_weight", kl_weight)
        check_weight("termination_weight", termination_weight)
        target_size = observation_size + 1
        self.latent_size = latent_size
        self.noise_size = latent_size + target_size + 1
        self.kl_weight = kl_weight
        self.termination_weight = termination_weight
        self.sample_termination = sample_termination
        self.sample_decoder_noise = sample_decoder_noise
        size = observation_size + action_size
        self.target_scale = TargetScale(observation_size)
        self.prior = MLP(size, prior_hidden, 2 * latent_size, activation)
        self.encoder = MLP(size + target_size, hidden, 2 * latent_size, activation)
        self.decoder = MLP(size + latent_size, hidden, target_size, activation)
        self.termination = TerminationHead(
            observation_size, action_size, termination_hidden, activation, differentiate_termination
        )
        self.sigma = LearnedSigma(target_size, initial_sigma, minimum_sigma, maximum_sigma)
        with torch.no_grad():
            # Prior and posterior both start near N(0, I), so that the KL divergence starts near zero.
            for network in (self.prior, self.encoder):
                network[-1].weight.mul_(0.1)  # type: ignore[operator]
                network[-1].bias.zero_()  # type: ignore[operator]

    @property
    def loss_noise_size(self) -> int:
        """Latent size L: the noise of the posterior sample."""
        return self.latent_size

    def forward(self, s: Tensor, a: Tensor, eps: Tensor) -> Prediction:
        """``s [..., S], a [..., A], eps [..., L+S+2] -> Prediction``, differentiable in s and a with eps fixed."""
        eps_z, eps_target, _ = eps.split([self.latent_size, self.observation_size + 1, 1], -1)
        sa = torch.cat([s, a], -1)
        mean, log_std = _gaussian(self.prior(sa))
        target = self.decoder(torch.cat([sa, mean + log_std.exp() * eps_z], -1))
        if self.sample_decoder_noise:
            target = target + self.sigma().exp() * eps_target
        return self._predict(s, a, target, eps)

    @torch.no_grad()
    def infer_noise(self, transition: Transition, eps: Tensor) -> Tensor:
        """See :meth:`WorldModel.infer_noise`: z is a posterior sample, and the decoder's noise is what remains.

        The termination component is passed on from ``eps``: a replayed end says nothing of the number that would
        have drawn it.
        """
        sa = torch.cat([transition.s, transition.a], -1)
        target, mean, log_std = self._posterior(transition)
        z = mean + log_std.exp() * eps[..., : self.latent_size]
        prior_mean, prior_log_std = _gaussian(self.prior(sa))
        eps_target = (target - self.decoder(torch.cat([sa, z], -1))) / self.sigma().exp()
        return torch.cat([(z - prior_mean) / prior_log_std.exp(), eps_target, eps[..., -1:]], -1)

    def reproduce(self, transition: Transition, s: Tensor, a: Tensor, eps: Tensor) -> Prediction:
        """See :meth:`WorldModel.reproduce`; prior and decoder are evaluated once in place of twice."""
        with torch.no_grad():
            target, mean, log_std = self._posterior(transition)
            z = mean + log_std.exp() * eps[..., : self.latent_size]
        sa = torch.cat([s, a], -1)
        mean, log_std = _gaussian(self.prior(sa))
        std = log_std.exp()
        decoded = self.decoder(torch.cat([sa, mean + std * ((z - mean) / std).detach()], -1))
        if self.sample_decoder_noise:
            decoded = decoded + (target - decoded).detach()
        return self._predict(s, a, decoded, eps)

    def _posterior(self, transition: Transition) -> tuple[Tensor, Tensor, Tensor]:
        """The normalised target ``[..., S+1]``, and mean and log std ``[..., L]`` of q(z | s, a, s', r)."""
        target = self.target_scale.encode(transition.s, transition.s_next, transition.r)
        mean, log_std = _gaussian(self.encoder(torch.cat([transition.s, transition.a, target], -1)))
        return target, mean, log_std

    def _predict(self, s: Tensor, a: Tensor, target: Tensor, eps: Tensor) -> Prediction:
        s_next, r = self.target_scale.decode(s, target)
        if self.sample_termination:
            return Prediction(s_next, r, self.termination.sample_continuation(s, a, s_next, eps[..., -1]))
        return Prediction(s_next, r, self.termination.continuation(s, a, s_next))

    def loss(self, transition: Transition, noise: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Negative evidence lower bound of (s', r), per transition, plus the termination head's cross entropy.

        Args:
            transition: ``[B]``.
            noise: standard normal ``[B, L]``, of the posterior sample.

        Returns:
            scalar loss in nats of the normalised target; statistics loss, kl, reconstruction (negative expected
            log-likelihood), termination_loss, sigma (mean over the components).
        """
        s, a, _, s_next, terminated = transition
        sa = torch.cat([s, a], -1)
        target, mean, log_std = self._posterior(transition)
        prior_mean, prior_log_std = _gaussian(self.prior(sa))
        z = mean + log_std.exp() * noise
        reconstruction = -self.sigma.log_prob(target - self.decoder(torch.cat([sa, z], -1))).mean()
        kl = _kl_divergence(mean, log_std, prior_mean, prior_log_std).sum(-1).mean()
        termination_loss = self.termination.loss(s, a, s_next, terminated)
        loss = reconstruction + self.kl_weight * kl + self.termination_weight * termination_loss
        return loss, {
            "loss": loss.detach(),
            "kl": kl.detach(),
            "reconstruction": reconstruction.detach(),
            "termination_loss": termination_loss.detach(),
            "sigma": self.sigma().detach().exp().mean(),
        }

    @torch.no_grad()
    def log_likelihood(self, transition: Transition, noise: Tensor) -> Tensor:
        """Importance-weighted lower bound of ``log p(s', r | s, a)`` (Burda et al. 2016), in nats: ``[...]``.

        The bound is on the density of the normalised target and tightens as K grows.

        Args:
            transition: ``[...]``.
            noise: standard normal ``[K, ..., L]``, of K posterior samples.
        """
        sa = torch.cat([transition.s, transition.a], -1)
        target, mean, log_std = self._posterior(transition)
        prior_mean, prior_log_std = _gaussian(self.prior(sa))
        z = mean + log_std.exp() * noise
        prior_noise = (z - prior_mean) * (-prior_log_std).exp()
        log_ratio = (0.5 * (noise.square() - prior_noise.square()) + log_std - prior_log_std).sum(-1)
        residual = target - self.decoder(torch.cat([sa.expand(*z.shape[:-1], -1), z], -1))
        return (self.sigma.log_prob(residual) + log_ratio).logsumexp(0) - math.log(noise.shape[0])

    def update_statistics(self, transition: Transition) -> None:
        """Takes the state differences and rewards of ``transition`` into the running scale of the targets."""
        s, _, r, s_next, _ = transition
        self.target_scale.update_from(s, s_next, r)


def _gaussian(parameters: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log standard deviation ``[..., L]`` from ``[..., 2L]``; the latter softly within +-5."""
    mean, log_std = parameters.chunk(2, -1)
    return mean, _LOG_STD_BOUND * (log_std / _LOG_STD_BOUND).tanh()


def _kl_divergence(mean: Tensor, log_std: Tensor, prior_mean: Tensor, prior_log_std: Tensor) -> Tensor:
    """KL of N(mean, std^2) from N(prior_mean, prior_std^2), per component."""
    ratio = log_std - prior_log_std
    shift = (mean - prior_mean) * (-prior_log_std).exp()
    return 0.5 * ((2 * ratio).exp() + shift.square() - 1) - ratio
