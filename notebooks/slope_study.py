"""Whether critics know which way is up: their gradients beside the true slopes of the return; a table of RESULTS.md.

    python notebooks/slope_study.py             five seeds of each cell; half an hour on one core
    python notebooks/slope_study.py --table     the table from the file, nothing is run

Critics are trained by MMD of the earlier default that differ in the gradients of a sample alone. The policy stays as it is,
so that all critics of a seed have the same data and the same truth: the one that the seed begins with, or a linear one that
keeps the pole up for about 70 steps. After STEPS environment steps the discounted return of that policy is measured in the
simulator, from states that it visits: with the state, or the first action, moved a little to either side. Such a secant also
sees what a derivative of the simulator does not, as where an episode ends.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "notebooks")]

from seed_runs import extremes, fit, provenance, study  # noqa: E402

from dsob_pl.envs.noise.state import simulator_state  # noqa: E402

RESULTS = ROOT / "notebooks" / "results" / "slope_study.csv"
LOOKS = ("state_cosine", "state_size", "action_cosine", "action_size", "expected", "realised", "target_gradient_norm")
COLUMNS = ["cell", "seed", "environment_step", "return_mean", *LOOKS, "run", "commit", "command"]
STEPS = 1000
TASKS = {"Pendulum-v1": "pendulum", "InvertedPendulum-v5": "inverted_pendulum"}
POLICY = "--model.init_args.policy"
POLICIES = {
    "Pendulum-v1, first policy": ("Pendulum-v1", ()),
    "InvertedPendulum-v5, first policy": ("InvertedPendulum-v5", ()),
    # Normalised observations: position and angle of the pole, and their velocities.
    "InvertedPendulum-v5, linear policy": (
        "InvertedPendulum-v5",
        (f"{POLICY}=dsob_pl.networks.LinearPolicy", f"{POLICY}.init_args.gain=[[0,0.06,0,0.1]]"),
    ),
}
GRADIENTS = {"none": "mmd", "action": "mmd_sobolev", "state and action": "mmd_sobolev_state_action"}
CELLS = {f"{policy} / {name}": (policy, method) for policy in POLICIES for name, method in GRADIENTS.items()}
# States; steps of each rollout, at a discount of 0.98 1.8 % of a return that goes on; how far a state is moved, in standard
# deviations of those states, and an action, of which the bounds are -1 and 1; samples of each critic.
STATES, HORIZON, WIDTH, ACTION_WIDTH, SAMPLES = 128, 200, 0.25, 0.25, 200
EXPLORATION = 0.15


def run(cell: str, seeds: str, folder: Path) -> list[dict[str, object]]:
    """Trains all seeds of a cell in one process; a row for each."""
    policy, method = CELLS[cell]
    task, options = POLICIES[policy]
    place = folder / str(list(CELLS).index(cell))
    files = [
        ROOT / "conf" / name
        for name in (f"{TASKS[task]}.yaml", "ablation/earlier_default.yaml", f"method/{method}.yaml")
    ]
    options += (f"--trainer.max_steps={STEPS}", "--trainer.val_check_interval=250", "--model.init_args.compile=true")
    options += ("--model.init_args.policy_optimizer=null",)
    rows: list[dict[str, object]] = []
    for found in fit(place, files, seeds, *options):
        rows.append(
            {"cell": cell, "environment_step": STEPS, "return_mean": f"{found.data.metrics['eval/return_mean']:.4g}"}
        )
        rows[-1] |= {name: f"{value:.4g}" for name, value in look(found, task).items()} | provenance(found)
    return rows


class Simulator:
    """Environments of a task, which are put into states; none of them has noise."""

    def __init__(self, envs: list[gymnasium.Env]) -> None:
        self.envs = envs
        self._states = [simulator_state(env) for env in envs]

    def state(self, i: int) -> np.ndarray:
        """Of environment ``i``."""
        return self._states[i].read()

    def place(self, i: int, state: np.ndarray) -> np.ndarray:
        """Puts environment ``i`` at the beginning of an episode in ``state``; the observation there."""
        self.envs[i].reset(seed=0)
        return np.asarray(self._states[i].write(state), np.float32)

    def returns(
        self, states: np.ndarray, actions: np.ndarray, act: Callable[[np.ndarray], np.ndarray], gamma: float
    ) -> np.ndarray:
        """Discounted returns ``[n]`` from ``states [n, D]`` with the first ``actions [n, A]``, then those of ``act``."""
        chunks = [slice(i, i + len(self.envs)) for i in range(0, len(states), len(self.envs))]
        return np.concatenate([self._returns(states[c], actions[c], act, gamma) for c in chunks])

    def _returns(
        self, states: np.ndarray, actions: np.ndarray, act: Callable[[np.ndarray], np.ndarray], gamma: float
    ) -> np.ndarray:
        observations = np.stack([self.place(i, state) for i, state in enumerate(states)])
        returns, running = np.zeros(len(states)), list(range(len(states)))
        for step in range(HORIZON):
            chosen = actions[running] if step == 0 else act(observations[running])
            ended = []
            for i, action in zip(running, chosen, strict=True):
                observations[i], reward, terminated, *_ = self.envs[i].step(action)
                returns[i] += gamma**step * float(reward)
                ended.append(terminated)
            running = [i for i, end in zip(running, ended, strict=True) if not end]
            if not running:
                break
        return returns


def look(found: Any, task: str) -> dict[str, float]:
    """How the gradients of the run's last critics compare with the slopes of the return of its policy."""
    from dsob_pl import load_agent, make_env

    agent = load_agent(Path(found.info.artifact_uri) / "checkpoints" / "last.ckpt")
    simulator = Simulator([make_env(task) for _ in range(STATES)])

    def act(observations: np.ndarray) -> np.ndarray:
        return agent.act(torch.as_tensor(observations)).numpy()

    states = visited(simulator, act, np.random.default_rng(0))
    observations = np.stack([simulator.place(i, state) for i, state in enumerate(states)])
    actions = act(observations)
    law = agent.value_distribution(torch.as_tensor(observations), torch.as_tensor(actions), SAMPLES)
    ds, da = (x.mean((0, -2)).numpy() for x in (law.state_gradients, law.action_gradients))

    def realised(states: np.ndarray, actions: np.ndarray) -> np.ndarray:
        return simulator.returns(states, actions, act, agent.gamma)

    # Either in the same units: the difference that moving the state by WIDTH to one side makes.
    true_s, own_s, true_a, own_a = [], [], [], []
    for move in np.diag(WIDTH * states.std(0)):
        ends = [np.stack([simulator.place(i, s) for i, s in enumerate(states + sign * move)]) for sign in (1, -1)]
        own_s.append((ds * (ends[0] - ends[1]) / 2).sum(-1))
        true_s.append((realised(states + move, actions) - realised(states - move, actions)) / 2)
    for move in np.eye(actions.shape[1]):
        ends = [np.clip(actions + sign * ACTION_WIDTH * move, -1, 1).astype(np.float32) for sign in (1, -1)]
        own_a.append((da * (ends[0] - ends[1]) / 2).sum(-1))
        true_a.append((realised(states, ends[0]) - realised(states, ends[1])) / 2)
    metrics = found.data.metrics
    return {
        **compared("state", np.stack(own_s), np.stack(true_s)),
        **compared("action", np.stack(own_a), np.stack(true_a)),
        "expected": law.returns.mean().item(),
        "realised": realised(states, actions).mean(),
        "target_gradient_norm": metrics.get("critic/target_gradient_norm", float("nan")),
    }


def visited(simulator: Simulator, act: Callable[[np.ndarray], np.ndarray], random: np.random.Generator) -> np.ndarray:
    """``STATES`` of the first ``HORIZON`` steps of as many episodes with exploration noise, one of each."""
    states = []
    for i, env in enumerate(simulator.envs):
        observation, _ = env.reset(seed=i)
        path = [simulator.state(i)]
        for _ in range(HORIZON):
            action = act(np.asarray(observation, np.float32)[None])[0]
            noisy = np.clip(action + EXPLORATION * random.standard_normal(action.shape), -1, 1).astype(np.float32)
            observation, _, terminated, truncated, _ = env.step(noisy)
            if terminated or truncated:
                break
            path.append(simulator.state(i))
        states.append(path[random.integers(len(path))])
    return np.stack(states)


def compared(name: str, own: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """Cosine of all slopes as one vector, which large ones decide, and the size of the critic's relative to the true."""
    sizes = np.linalg.norm(own), np.linalg.norm(true)
    return {
        f"{name}_cosine": float((own * true).sum() / (sizes[0] * sizes[1])),
        f"{name}_size": float(sizes[0] / sizes[1]),
    }


def table(rows: list[dict[str, str]]) -> str:
    """Means over seeds with lowest and highest; the return's interquartile mean with its 95 % bootstrap interval."""
    from dsob_pl.analysis.statistics import estimate, interquartile_mean
    from dsob_pl.analysis.text import interval

    lines = [
        "| task and policy / gradients | seeds | evaluation return | state slopes: cosine | size | action slopes: cosine | size "
        "| expected return | realised return | norm of the target's gradient |",
        "|---" * 10 + "|",
    ]
    for cell in CELLS:
        own = [row for row in rows if row["cell"] == cell]
        if not own:
            continue
        returns = np.array([float(row["return_mean"]) for row in own])
        texts = [interval(estimate(interquartile_mean, [returns]))]
        for name in LOOKS:
            values = np.array([float(row[name]) for row in own])
            known = values[np.isfinite(values)]
            texts.append(extremes(known, 2) if known.size else "")
        lines.append(f"| {cell} | {len(own)} | {' | '.join(texts)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    study(__doc__, list(CELLS), run, table, RESULTS, COLUMNS, seeds="0-4")
