"""Scores a run against the true law of its returns and gradients, where the dynamics are known."""

from __future__ import annotations

import copy
from typing import Any

import lightning as L
import torch
from torch import Tensor

from dsob_pl.agents import SobolevActorCritic
from dsob_pl.bellman import SobolevOrder
from dsob_pl.envs import LinearQuadratic, Problem, env_name
from dsob_pl.errors import UsageError
from dsob_pl.ground_truth.figure import truth_figure
from dsob_pl.ground_truth.model_scores import model_scores
from dsob_pl.ground_truth.rollout import true_returns
from dsob_pl.ground_truth.scores import scores
from dsob_pl.networks import LinearPolicy
from dsob_pl.world_models.figure import log_figure

# Scores are means over members of the critic: each of them predicts a law of its own.
_TABLE = (
    ("return_error", "error of the mean return, in standard deviations"),
    ("return_spread", "learned over true standard deviation of the return"),
    ("gradient_error", "relative error of the mean action gradient"),
    ("gradient_cosine", "cosine of learned and true mean action gradient"),
    ("gradient_spread", "learned over true standard deviation of the action gradient"),
    ("conditional_gradient_error", "relative error of E[dG/da] given the decile of G"),
    ("cvar_10_gradient_error", "relative error of the gradient of CVaR at 0.1"),
    ("cvar_10_gradient_cosine", "cosine of learned and true gradient of CVaR at 0.1"),
    ("cvar_25_gradient_error", "relative error of the gradient of CVaR at 0.25"),
    ("cvar_25_gradient_cosine", "cosine of learned and true gradient of CVaR at 0.25"),
    ("energy_distance", "joint law of return and action gradient"),
    ("state_gradient_error", "relative error of the mean state gradient"),
    ("state_gradient_cosine", "cosine of learned and true mean state gradient"),
    ("state_gradient_spread", "learned over true standard deviation of the state gradient"),
    ("state_conditional_gradient_error", "relative error of E[dG/ds] given the decile of G"),
    ("state_energy_distance", "joint law of return, state and action gradient"),
)


class GroundTruth(L.Callback):
    """Compares the critic's samples with true ones at fixed state-action pairs, on environments with known dynamics.

    The truth is drawn by Monte-Carlo rollouts of the current policy, differentiated from end to end. First states are
    the problem's own, first actions uniform in [-1, 1]. Scores are logged every so many environment steps and at the
    end, which also prints them and stores a figure of learned against true samples.

    Args:
        every: environment steps from one comparison to the next, counted from the first update.
        pairs: number R of state-action pairs.
        samples: samples per pair of either law.
        figure_pairs: pairs shown in the figure; 0 for no figure.
        seed: of pairs and of the truth; the same for all runs that are to be compared.

    Attributes:
        history: the scores so far, by name, with ``step`` (environment steps) and ``updates``.

    Raises:
        UsageError: a number out of range; at the start of a fit, an environment or model that cannot be scored, or a
            linear-quadratic problem whose closed loop is unstable.
    """

    def __init__(
        self, every: int = 100, pairs: int = 32, samples: int = 2048, figure_pairs: int = 4, seed: int = 0
    ) -> None:
        for name, value, least in (("every", every, 1), ("pairs", pairs, 1), ("samples", samples, 10)):
            if value < least:
                raise UsageError(f"GroundTruth.{name}: expected at least {least}, got {value}")
        self.every = every
        self.pairs = pairs
        self.samples = samples
        self.figure_pairs = min(figure_pairs, pairs)
        self.seed = seed
        self.history: list[dict[str, float]] = []
        self._truth: Tensor | None = None
        self._begin: int | None = None  # environment step before the first update
        self._scored = -1
        self._goes_on = False

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Refuses what cannot be scored; draws the state-action pairs."""
        env = trainer.datamodule.env  # type: ignore[attr-defined]
        problem = getattr(env.unwrapped, "problem", None)
        if not isinstance(problem, Problem):
            name = env_name(env)
            raise UsageError(f"GroundTruth: '{name}' has no known dynamics; expected e.g. dsob_pl/LinearQuadratic-v0")
        if getattr(trainer.datamodule, "noise", None):  # type: ignore[attr-defined]
            raise UsageError("GroundTruth: the truth is that without data.noise; leave out one of the two")
        if not isinstance(pl_module, SobolevActorCritic):
            raise UsageError(f"GroundTruth: expected model SobolevActorCritic, got {type(pl_module).__name__}")
        linear = isinstance(pl_module.policy, LinearPolicy) and not pl_module.policy.squash
        if isinstance(problem, LinearQuadratic) and linear and not pl_module.scales.normalize_observations:
            problem.check_stable(pl_module.policy.gain, pl_module.gamma)
        self._problem = copy.deepcopy(problem).to(pl_module.device)  # the environment steps its own on the CPU
        generator = torch.Generator().manual_seed(self.seed)
        shape = (self.pairs, problem.observation_size)
        self._s = self._problem.initial_state(torch.randn(shape, generator=generator).to(pl_module.device))
        self._a = (torch.rand(self.pairs, problem.action_size, generator=generator) * 2 - 1).to(pl_module.device)
        if any(p.dtype != torch.float32 for p in pl_module.parameters()):
            raise UsageError("GroundTruth: expected trainer.precision of 32 bits")
        self._truth = None
        if not self._goes_on:
            self.history, self._begin, self._scored = [], None, -1
        self._goes_on = False

    def state_dict(self) -> dict[str, Any]:
        """Where the cadence began, and the scores so far."""
        return {"begin": self._begin, "scored": self._scored, "history": [dict(entry) for entry in self.history]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on with them."""
        self._begin, self._scored = state_dict["begin"], state_dict["scored"]
        self.history = [dict(entry) for entry in state_dict["history"]]
        self._goes_on = True

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Scores at the cadence."""
        assert isinstance(pl_module, SobolevActorCritic)
        if not pl_module.updates:
            return
        if self._begin is None:
            self._begin = trainer.global_step - 1
        if (trainer.global_step - self._begin) % self.every == 0:
            self.score(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Scores once more, stores the figure and prints the table."""
        assert isinstance(pl_module, SobolevActorCritic)
        if not pl_module.updates or trainer.interrupted:
            return
        if self._scored != trainer.global_step:
            self.score(trainer, pl_module)
        if self.figure_pairs:
            n = self.figure_pairs
            learned = self._learned(pl_module, n)[0]
            titles = [f"s = {_short(s)}, a = {_short(a)}" for s, a in zip(self._s[:n], self._a[:n])]
            figure = truth_figure(learned, self.truth(pl_module)[:n], self._problem.observation_size, titles)
            log_figure(trainer, figure, "figures/ground_truth.png")
        seed = getattr(trainer, "seed", None)  # where it is one of many
        print(self.table() if seed is None else f"seed {seed}: {self.table()}")

    def truth(self, agent: SobolevActorCritic) -> Tensor:
        """True samples ``[R, samples, 1+S+A]`` of the agent's policy; drawn once where that does not learn."""
        if self._truth is None or agent.learns_policy:
            generator = torch.Generator(agent.device).manual_seed(self.seed)

            def policy(s: Tensor) -> Tensor:
                return agent.policy(agent.normalizer(s))

            self._truth = true_returns(
                self._problem, policy, self._s, self._a, agent.gamma, self.samples, generator=generator
            )
        return self._truth

    def _learned(self, agent: SobolevActorCritic, pairs: int) -> Tensor:
        """Samples ``[E, pairs, samples, 1+S+A]`` of each critic; a deterministic one has one, not many equal ones."""
        learned = agent.sobolev_returns(self._s[:pairs], self._a[:pairs], self.samples)
        return learned if agent.critic.noise_size else learned[:, :, :1]

    def score(self, trainer: L.Trainer, agent: SobolevActorCritic) -> dict[str, float]:
        """Compares, logs and remembers; the names are those of the glossary."""
        truth, size = self.truth(agent), self._problem.observation_size
        learned = self._learned(agent, len(self._s))
        full = agent.order is SobolevOrder.STATE_ACTION
        members = [scores(member, truth, size, state=full) for member in learned]
        metrics = {f"truth/{name}": torch.stack([m[name] for m in members]).mean() for name in members[0]}
        if agent.learns_model:
            assert agent.world_model is not None
            generator = torch.Generator(agent.device).manual_seed(self.seed)
            model = model_scores(agent.world_model, self._problem, self._s, self._a, self.samples, generator)
            metrics |= {f"world_model/{name}": value for name, value in model.items()}
        numbers = {name: float(value) for name, value in metrics.items()}
        for logger in trainer.loggers:
            logger.log_metrics(numbers, step=trainer.global_step)
        self._scored = trainer.global_step
        self.history.append({"step": float(trainer.global_step), "updates": float(agent.updates), **numbers})
        return numbers

    def table(self) -> str:
        """The latest scores, one a line."""
        latest = self.history[-1]
        title = f"against {self.samples} true samples at each of {self.pairs} state-action pairs"
        lines = [f"ground truth after {int(latest['updates'])} updates, {title}"]
        for name, meaning in _TABLE:
            if f"truth/{name}" in latest:
                lines.append(f"  {name:<33}{latest[f'truth/{name}']:>10.4f}  {meaning}")
        for name in ("jacobian_error", "energy_distance"):
            if f"world_model/{name}" in latest:
                lines.append(f"  {'world_model/' + name:<33}{latest[f'world_model/{name}']:>10.4f}")
        return "\n".join(lines)


def _short(vector: Tensor) -> str:
    """The first entries of ``vector [n]`` with one digit, for a title."""
    numbers = ", ".join(f"{x:.1f}" for x in vector[:3].tolist())
    return f"({numbers}{', ...' if len(vector) > 3 else ''})"
