"""The protocol of a one-step world model, and how one is fitted by itself."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import lightning as L
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from dsob_pl.diagnostics import save_diagnostics
from dsob_pl.errors import RunFailed, UsageError
from dsob_pl.networks import RewardScale, RunningNormalizer
from dsob_pl.world_models.figure import log_figure, prediction_figure
from dsob_pl.world_models.metrics import heldout_log_likelihood, open_loop_error, spread_ratio

if TYPE_CHECKING:
    from gymnasium import Env
    from tensordict import TensorDictBase

# Held-out transitions and real trajectories that one validation looks at: enough for three digits, under a second.
_HELDOUT_TRANSITIONS = 1024
_HELDOUT_TRAJECTORIES = 256
_HELDOUT_SAMPLES = 64
_OPEN_LOOP_STEPS = 10


class Transition(NamedTuple):
    """Transitions in the space the networks see (normalised observations, scaled rewards).

    ``[...]`` is any batch shape.

    Attributes:
        s: observation ``[..., S]``.
        a: action ``[..., A]`` in [-1, 1].
        r: reward ``[...]``.
        s_next: next observation ``[..., S]``.
        terminated: 1.0 where the task ended, else 0.0 ``[...]``; running out of time is not an end.
    """

    s: Tensor
    a: Tensor
    r: Tensor
    s_next: Tensor
    terminated: Tensor

    @classmethod
    def from_replay(cls, data: TensorDictBase, normalizer: nn.Module, reward_scale: float | Tensor = 1.0) -> Transition:
        """Transitions of a replay TensorDict ``[...]``, brought into the networks' space.

        A terminal state that was recorded as NaN becomes the state before it: nothing is bootstrapped from it, but
        0 * NaN would be NaN all the same.
        """
        s, s_next, ended = data["observation"], data["next", "observation"], data["next", "terminated"]
        s_next = torch.where(ended & s_next.isnan(), s, s_next)
        return cls(
            normalizer(s),
            data["action"],
            data["next", "reward"].squeeze(-1) * reward_scale,
            normalizer(s_next),
            ended.squeeze(-1).to(data["action"].dtype),
        )


class Prediction(NamedTuple):
    """One imagined step.

    Attributes:
        s_next: ``[..., S]``, differentiable in s and a.
        r: ``[...]``, differentiable in s and a.
        continuation: one minus the (probability or sample of) termination ``[...]``.
    """

    s_next: Tensor
    r: Tensor
    continuation: Tensor


class WorldModel(L.LightningModule):
    """A reparameterised one-step model ``(s', r, continuation) = g(s, a, eps)`` with ``eps ~ N(0, I)`` (SVG).

    All randomness comes in through ``eps [..., noise_size]``, so that with eps held fixed the sample is a
    differentiable function of (s, a). Subclasses set ``noise_size`` and implement ``forward`` and, where they learn,
    ``loss`` and ``log_likelihood``. An agent reaches a model through these methods alone; they keep no state between
    calls. The Lightning hooks below them fit the model by itself on a ReplayDataModule.

    Args:
        observation_size: S.
        action_size: A.
        learning_rate: of the optimizer where the model is fitted alone; an agent brings its own.
        max_gradient_norm: gradients are clipped to this global norm, likewise.

    Raises:
        UsageError: a learning rate or norm that is not positive.
    """

    noise_size: int

    def __init__(
        self, observation_size: int, action_size: int, learning_rate: float = 1e-3, max_gradient_norm: float = 100.0
    ) -> None:
        super().__init__()
        for name, value in {"learning_rate": learning_rate, "max_gradient_norm": max_gradient_norm}.items():
            if not value > 0:
                raise UsageError(f"world_model.{name}: expected a number above 0, got {value}")
        self.observation_size = observation_size
        self.action_size = action_size
        self.learning_rate = learning_rate
        self.max_gradient_norm = max_gradient_norm
        # Used when the model is fitted alone; inside an agent they are the agent's own, shared.
        self.normalizer = RunningNormalizer(observation_size)
        self.reward_scale = RewardScale()
        self.automatic_optimization = False

    def attach(self, env: Env) -> None:
        """Shows the model the environment that it is a model of, before training; learned models have no use for it."""

    @property
    def learns(self) -> bool:
        """Whether there is anything to train."""
        return any(True for _ in self.parameters())

    def forward(self, s: Tensor, a: Tensor, eps: Tensor) -> Prediction:
        """``s [..., S], a [..., A], eps [..., noise_size] -> Prediction``."""
        raise NotImplementedError

    def infer_noise(self, transition: Transition, eps: Tensor) -> Tensor:
        """The noise that reproduces a replayed transition: ``forward(s, a, infer_noise(...))`` gives its s' and r.

        Args:
            transition: replayed transitions ``[...]``.
            eps: standard normal ``[..., noise_size]``; what the transition leaves undetermined is drawn from it.

        Returns:
            ``[..., noise_size]``, detached (Heess et al. 2015, SVG).

        Raises:
            NotImplementedError: the model has no inference.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot infer noise from a transition")

    @property
    def infers_noise(self) -> bool:
        """Whether the model reproduces replayed transitions: it has ``infer_noise`` or ``reproduce`` of its own."""
        own = type(self)
        return own.infer_noise is not WorldModel.infer_noise or own.reproduce is not WorldModel.reproduce

    def reproduce(self, transition: Transition, s: Tensor, a: Tensor, eps: Tensor) -> Prediction:
        """``forward(s, a, infer_noise(transition, eps))``: at the transition's own (s, a), its s' and r.

        Args:
            transition: ``[...]``, or of a shape that broadcasts to it.
            s: ``[..., S]``, equal to the transition's; the prediction is differentiable in it.
            a: ``[..., A]``, likewise.
            eps: standard normal ``[..., noise_size]``.
        """
        return self(s, a, self.infer_noise(transition, eps))

    @property
    def loss_noise_size(self) -> int:
        """Size of the standard normal noise that ``loss`` takes per transition."""
        return 0

    def loss(self, transition: Transition, noise: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Training loss on ``transition [B]`` with standard normal ``noise [B, loss_noise_size]``.

        Returns:
            the scalar loss and detached scalar statistics, without a prefix in their names.
        """
        raise NotImplementedError

    def log_likelihood(self, transition: Transition, noise: Tensor) -> Tensor:
        """``log p(s', r | s, a)``, or a lower bound, of the normalised target in nats ``[...]``.

        Args:
            transition: ``[...]``.
            noise: standard normal ``[K, ..., loss_noise_size]``; a bound tightens as K grows.
        """
        raise NotImplementedError

    def update_statistics(self, transition: Transition) -> None:
        """Takes ``transition`` into the running scales of the model's targets; models without any ignore it.

        To be given replayed batches: transitions seen while the observation normaliser was still settling are in
        other units.
        """

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Adam, and a clock that makes ``trainer.global_step`` count environment steps."""
        adam = torch.optim.Adam(self.parameters(), self.learning_rate, fused=True)
        return [adam, torch.optim.SGD([torch.zeros((), requires_grad=True)], lr=0.0)]

    def on_fit_start(self) -> None:
        """Collection by uniform random actions; the scale of the observations from transitions already at hand."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        data.attach(lambda _: torch.rand(self.action_size) * 2 - 1)
        if len(data.replay) and not self.normalizer.count:
            self.normalizer.update(data.replay[:]["observation"].to(self.device))

    def training_step(self, step: Any, index: int) -> None:
        """U updates on the replayed batches ``[U, B]`` of one environment step.

        Raises:
            RunFailed: loss or gradient is not finite.
        """
        if step.new is not None:
            self.normalizer.update(step.new["observation"])
        if step.batch is not None:
            replayed = Transition.from_replay(step.batch, self.normalizer)
            self.update_statistics(replayed)
            optimizer = self.optimizers(use_pl_optimizer=False)[0]  # type: ignore[index]
            updates = [self._update(Transition(*batch), optimizer) for batch in zip(*replayed)]
            metrics = {name: torch.stack([u[name] for u in updates]).mean() for name in updates[0]}
            self._stop_if_not_finite(updates, step)
            if (self.global_step + 1) % max(self.trainer.log_every_n_steps, 1) == 0:  # type: ignore[attr-defined]
                self.log_dict({f"world_model/{name}": value for name, value in metrics.items()}, batch_size=1)
        clock = self.optimizers()[1]  # type: ignore[index]
        assert isinstance(clock, LightningOptimizer)
        clock.step()

    def _stop_if_not_finite(self, updates: list[dict[str, Tensor]], step: Any) -> None:
        watched = [name for _ in updates for name in ("loss", "grad_norm")]
        values = torch.stack([u[name] for u in updates for name in ("loss", "grad_norm")]).tolist()
        name = next((name for name, value in zip(watched, values) if not math.isfinite(value)), None)
        if name is not None:
            number = step.environment_step
            reason = f"world_model/{name} became non-finite at environment step {number}"
            history = {f"world_model/{key}": [float(u[key]) for u in updates] for key in updates[0]}
            raise RunFailed(reason + save_diagnostics(self.trainer, number, reason, step.batch, history, self))

    def _update(self, transition: Transition, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        """One optimizer step on ``transition [B]``; returns the statistics of the loss and the gradient norm."""
        noise = torch.randn(*transition.r.shape, self.loss_noise_size, device=self.device)
        loss, statistics = self.loss(transition, noise)
        optimizer.zero_grad()
        loss.backward()
        statistics["grad_norm"] = clip_grad_norm_(self.parameters(), self.max_gradient_norm)
        optimizer.step()
        return statistics

    def validation_step(self, batch: Any, index: int) -> None:
        """Logs held-out likelihood, spread and open-loop error, and the predicted-against-true figure.

        The noise is the same at every validation, so that a change of a metric is a change of the model. While no
        episode has been held out yet nothing is logged, and no open-loop error while all of them are too short.

        Raises:
            UsageError: validation or test of a checkpoint without held-out transitions.
        """
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        stored = len(data.holdout)
        if not stored:
            if self.trainer.state.fn == TrainerFn.FITTING:
                return
            raise UsageError("data.holdout_fraction: no held-out transitions to validate on; expected a value above 0")
        rows = torch.linspace(0, stored - 1, min(stored, _HELDOUT_TRANSITIONS)).long()
        heldout = Transition.from_replay(data.holdout[rows].to(self.device), self.normalizer)
        paths = data.holdout_trajectories(_OPEN_LOOP_STEPS, _HELDOUT_TRAJECTORIES).to(self.device)
        generator = torch.Generator(self.device).manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, device=self.device, generator=generator)

        eps = normal(_HELDOUT_SAMPLES, len(rows), self.noise_size)
        noise = normal(_HELDOUT_SAMPLES, len(rows), self.loss_noise_size)
        metrics = {
            "heldout_log_likelihood": heldout_log_likelihood(self, heldout, noise),
            "spread": spread_ratio(self, heldout, eps),
        }
        if len(paths):
            path_eps = normal(_OPEN_LOOP_STEPS, _HELDOUT_SAMPLES, len(paths), self.noise_size)
            real = Transition.from_replay(paths, self.normalizer)
            metrics["open_loop_error"] = open_loop_error(self, real, path_eps)
        self.log_dict({f"world_model/{name}": value for name, value in metrics.items()}, batch_size=1)
        log_figure(self.trainer, prediction_figure(self, heldout, eps), "figures/world_model.png")

    def test_step(self, batch: Any, index: int) -> None:
        """The same as a validation."""
        self.validation_step(batch, index)
