"""One episode of a trained agent, with the law of the return that its critics predicted at every step of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from dsob_pl.agents.calibration import probability_integral_transform
from dsob_pl.envs import reset_environment, step_environment
from dsob_pl.errors import UsageError

if TYPE_CHECKING:
    from gymnasium import Env

LEVELS = (0.025, 0.1, 0.25, 0.5, 0.75, 0.9, 0.975)
LONGEST = 5000  # steps that are shown
_ALPHA = 0.1
_ROWS = 20_000  # samples of each critic in one pass, which bounds the memory
_KEPT, _FIELDS, _GRID = (
    60,
    40,
    9,
)  # samples of a step for its histogram, steps with a field, actions along an axis of it


class Field(NamedTuple):
    """The law of the return over all actions of two dimensions, at F steps of an episode.

    Attributes:
        steps: ``[F]`` which steps.
        axis: ``[9]`` the grid's actions along either axis.
        mean: ``[F, 9, 9]`` mean return, first axis the first action component.
        gradient: ``[F, 9, 9, 2]`` mean dG/da.
        cvar_gradient: ``[F, 9, 9, 2]`` gradient of CVaR at 0.1.
    """

    steps: np.ndarray
    axis: np.ndarray
    mean: np.ndarray
    gradient: np.ndarray
    cvar_gradient: np.ndarray


class ExplainedEpisode(NamedTuple):
    """T steps; returns in units of reward.

    Attributes:
        actions: ``[T, A]``.
        rewards: ``[T]``.
        realised: ``[T]`` discounted return from each step on; of an episode that was cut off with the mean predicted
            return at its last state as the rest.
        rest: ``[T]`` how much of ``realised`` is not seen but predicted, as a discount factor; 0 where it terminated.
        quantiles: ``[T, 7]`` of the predicted law, at ``LEVELS``.
        mean: ``[T]`` of the predicted law.
        cvar: ``[T]`` CVaR of it at 0.1.
        disagreement: ``[T]`` Wasserstein-1 distance of the critics' laws.
        samples: ``[T, 60]`` of the predicted law.
        gradient: ``[T, A]`` mean dG/da at the chosen action.
        gradient_low, gradient_high: ``[T, A]`` its 10 % and 90 % quantiles.
        places: ``[T]`` PIT of ``realised``.
        terminated: whether it ended, else it was cut off.
        field: None unless actions have two components.
    """

    actions: np.ndarray
    rewards: np.ndarray
    realised: np.ndarray
    rest: np.ndarray
    quantiles: np.ndarray
    mean: np.ndarray
    cvar: np.ndarray
    disagreement: np.ndarray
    samples: np.ndarray
    gradient: np.ndarray
    gradient_low: np.ndarray
    gradient_high: np.ndarray
    places: np.ndarray
    terminated: bool
    field: Field | None


def explain_episode(agent: Any, env: Env, seed: int, samples: int) -> ExplainedEpisode:
    """Plays one episode and looks at what the agent predicted at each of its steps.

    Args:
        agent: with a critic of samples.
        env: of ``make_env``.
        seed: of its reset.
        samples: of each critic and step.

    Raises:
        UsageError: a deterministic critic, or an episode of more than 5,000 steps.
    """
    observations, actions, rewards, terminated = _play(agent, env, seed)
    steps, gamma = len(rewards), float(agent.gamma)
    to_go = np.zeros(steps + 1)
    if not terminated:
        last = torch.as_tensor(observations[-1], dtype=torch.float32)
        to_go[-1] = float(agent.value_distribution(last, agent.act(last), samples).returns.mean())
    for t in reversed(range(steps)):
        to_go[t] = rewards[t] + gamma * to_go[t + 1]
    realised = to_go[:-1]
    some = max(1, _ROWS // samples)  # steps at a time; all rows share their noise, so that it makes no difference
    parts = []
    for start in range(0, steps, some):
        rows = slice(start, start + some)
        parts.append(_predicted(agent, observations[:-1][rows], actions[rows], realised[rows], samples))
    return ExplainedEpisode(
        actions=actions,
        rewards=rewards,
        realised=realised,
        rest=np.zeros(steps) if terminated else gamma ** np.arange(steps, 0, -1),
        **{name: np.concatenate([part[name] for part in parts]) for name in parts[0]},
        terminated=terminated,
        field=_field(agent, observations[:-1], samples) if actions.shape[1] == 2 else None,
    )


def _predicted(
    agent: Any, observations: np.ndarray, actions: np.ndarray, realised: np.ndarray, samples: int
) -> dict[str, np.ndarray]:
    """What the agent predicted at some steps, by field of ``ExplainedEpisode``."""
    law = agent.value_distribution(observations, actions, samples)
    pooled = law.returns.movedim(0, -1).flatten(1)
    gradients = law.action_gradients.movedim(0, 1).flatten(1, 2)
    low, high = gradients.quantile(gradients.new_tensor([0.1, 0.9]), dim=1)
    shown = torch.linspace(0, pooled.shape[1] - 1, min(_KEPT, pooled.shape[1])).long()
    found = {
        "quantiles": law.quantile(LEVELS),
        "mean": pooled.mean(-1),
        "cvar": law.cvar(_ALPHA),
        "disagreement": law.disagreement,
        "samples": pooled[:, shown],
        "gradient": gradients.mean(1),
        "gradient_low": low,
        "gradient_high": high,
        "places": probability_integral_transform(pooled, torch.as_tensor(realised, dtype=pooled.dtype)),
    }
    return {name: value.numpy() for name, value in found.items()}


def _play(agent: Any, env: Env, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, bool]:
    """Observations ``[T+1, S]``, actions ``[T, A]`` and rewards ``[T]`` of an episode, and whether it terminated."""
    observations = [reset_environment(env, seed, 0)]
    actions: list[np.ndarray] = []
    rewards: list[float] = []
    over = terminated = False
    while not over:
        action = agent.act(torch.as_tensor(observations[-1], dtype=torch.float32)).cpu().numpy()
        observation, reward, terminated, truncated = step_environment(env, action, len(rewards) + 1)
        observations.append(observation)
        actions.append(action)
        rewards.append(float(reward))
        over = terminated or truncated
        if len(rewards) > LONGEST:
            raise UsageError(f"explain: the episode has more than {LONGEST:,} steps; limit them by --max_steps")
    return np.stack(observations), np.stack(actions), np.array(rewards), bool(terminated)


def _field(agent: Any, observations: np.ndarray, samples: int) -> Field:
    """What the critics predict of a grid of actions, at evenly spaced steps."""
    from dsob_pl.risk import CVaR

    steps = np.unique(np.linspace(0, len(observations) - 1, min(_FIELDS, len(observations))).astype(int))
    axis = torch.linspace(-1, 1, _GRID)
    grid = torch.cartesian_prod(axis, axis)
    count = max(1, min(samples, 64))
    mean, gradient, cvar = [], [], []
    for step in steps:  # one at a time: memory is that of 81 actions
        law = agent.value_distribution(observations[step], grid, count)
        mean.append(law.returns.mean((0, -1)))
        gradient.append(law.action_gradients.mean((0, -2)))
        cvar.append(law.risk_gradient(CVaR(_ALPHA)))
    shape = (len(steps), _GRID, _GRID)
    return Field(
        steps,
        axis.numpy(),
        torch.stack(mean).reshape(shape).numpy(),
        torch.stack(gradient).reshape(*shape, 2).numpy(),
        torch.stack(cvar).reshape(*shape, 2).numpy(),
    )
