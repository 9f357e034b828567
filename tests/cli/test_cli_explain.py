"""``explain``: one real episode, what was predicted at each step of it, a picture and a page."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_project import Finished
from gymnasium.wrappers import TimeLimit

import dsob_pl
from dsob_pl.agents import SobolevActorCritic
from dsob_pl.analysis.episode import LEVELS, ExplainedEpisode, explain_episode
from dsob_pl.analysis.episode_figure import coverage_line, episode_figure
from dsob_pl.analysis.episode_page import episode_page
from dsob_pl.cli import main
from dsob_pl.critics import GenerativeCritic
from dsob_pl.envs import make_env
from dsob_pl.networks import DeterministicPolicy


@pytest.fixture
def run(finished: Finished, monkeypatch: pytest.MonkeyPatch) -> str:
    """Id of a finished run, from its project's folder."""
    monkeypatch.chdir(finished.folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return min(p.name for p in (finished.folder / "mlruns" / "InvertedPendulum-v5").iterdir())


def agent_for(env: Any, members: int = 2, noise_size: int = 8) -> SobolevActorCritic:
    torch.manual_seed(0)
    sizes = (env.observation_space.shape[0], env.action_space.shape[0])
    return SobolevActorCritic(
        *sizes,
        critic=lambda s, a: GenerativeCritic(s, a, members, hidden=(8,), noise_size=noise_size, noise_gain=1.0),
        policy=lambda s, a: DeterministicPolicy(s, a, hidden=(8,)),
        world_model=None,
        target_source="replayed",
        sobolev="none",
        divergence=dsob_pl.divergences.MMD(),
        gamma=0.9,
    ).eval()


@pytest.fixture(scope="module")
def planar() -> ExplainedEpisode:
    """An episode with two action components that is cut off after thirty steps."""
    env = TimeLimit(make_env("dsob_pl/PointMass-v0"), 30)
    return explain_episode(agent_for(env), env, 3, 40)


def page_data(text: str) -> Any:
    (found,) = re.findall(r'<script id="episode" type="application/json">(.*?)</script>', text, re.DOTALL)
    return json.loads(found.replace("<\\/", "</"))


def test_a_run_is_explained_by_a_picture_and_a_page(
    run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", "--run", run[:10], "--episode", "5", "--samples", "50", "--out", str(tmp_path / "o")]) == 0
    out = capsys.readouterr().out
    assert (tmp_path / "o" / "explain.png").read_bytes().startswith(b"\x89PNG")
    data = page_data((tmp_path / "o" / "explain.html").read_text())
    agent, env = dsob_pl.load_agent(run), make_env("InvertedPendulum-v5")
    observation, _ = env.reset(seed=5)
    rewards, over = [], False
    while not over:
        action = agent.act(torch.as_tensor(observation, dtype=torch.float32)).numpy()
        observation, reward, terminated, truncated, _ = env.step(action)
        rewards.append(reward)
        over = terminated or truncated
    assert f"return {sum(rewards):,.1f}; {len(rewards)} steps, terminated" in out
    assert data["rewards"] == pytest.approx(rewards)
    discounted = sum(agent.gamma**t * r for t, r in enumerate(rewards))
    assert data["realised"][0] == pytest.approx(discounted, rel=1e-3)
    assert "field" not in data
    assert data["seen"] == len(rewards)  # it terminated: nothing is left to be predicted


def test_what_is_shown_is_what_the_agent_predicts(planar: ExplainedEpisode) -> None:
    steps = len(planar.rewards)
    assert steps == 30
    assert not planar.terminated
    assert planar.quantiles.shape == (steps, len(LEVELS))
    assert (np.diff(planar.quantiles, axis=1) >= 0).all()
    assert (planar.cvar <= planar.mean).all()
    assert (planar.gradient_low <= planar.gradient_high).all()
    np.testing.assert_allclose(planar.rest, 0.9 ** np.arange(30, 0, -1))
    # Backwards from what was predicted at the end.
    np.testing.assert_allclose(planar.realised[:-1], planar.rewards[:-1] + 0.9 * planar.realised[1:])
    ranks = planar.places * 81 - 0.5  # among two members' forty samples each; a tie counts half
    np.testing.assert_allclose(ranks, np.round(2 * ranks) / 2, atol=1e-4)


def test_an_episode_looked_at_piece_by_piece_is_the_same(
    planar: ExplainedEpisode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dsob_pl.analysis.episode._ROWS", 7 * 40)
    env = TimeLimit(make_env("dsob_pl/PointMass-v0"), 30)
    for name, value in explain_episode(agent_for(env), env, 3, 40)._asdict().items():
        if isinstance(value, np.ndarray):
            np.testing.assert_allclose(value, getattr(planar, name), atol=1e-5, err_msg=name)


def test_the_field_is_the_law_of_other_actions(planar: ExplainedEpisode) -> None:
    assert planar.field is not None
    env = TimeLimit(make_env("dsob_pl/PointMass-v0"), 30)
    agent = agent_for(env)
    observation, _ = env.reset(seed=3)
    action = torch.tensor([planar.field.axis[2], planar.field.axis[7]])
    law = agent.value_distribution(torch.as_tensor(observation), action, 40)
    np.testing.assert_allclose(planar.field.mean[0, 2, 7], law.returns.mean().numpy(), rtol=1e-4)
    np.testing.assert_allclose(planar.field.gradient[0, 2, 7], law.action_gradients.mean((0, 1)).numpy(), atol=1e-5)
    spans = planar.field.mean.max((1, 2)) - planar.field.mean.min((1, 2))
    assert (spans > 0).all()


def test_steps_that_rest_on_predictions_do_not_count(planar: ExplainedEpisode) -> None:
    seen = 30 - 15  # 0.9 ** 16 is below a fifth, 0.9 ** 15 above
    assert f"({seen} steps)" in coverage_line(planar)
    assert page_data(episode_page(planar, "t"))["seen"] == seen
    short = planar._replace(rest=np.ones(30))
    assert "no step is far enough" in coverage_line(short)
    assert episode_figure(short, "t").axes  # and nothing fails


def test_the_page_needs_nothing_and_its_script_runs(planar: ExplainedEpisode, tmp_path: Path) -> None:
    page = episode_page(planar, "a <b> & </script> title")
    assert "a &lt;b&gt; &amp; &lt;/script&gt; title" in page
    assert not re.search(r"(src|href)\s*=\s*.?(https?:)?//", page)
    fan, law, field, bad, numbers = run_script(page, tmp_path)
    assert (fan > 8, law, field, bad) == (True, 30 + 3 + 2, 81 * 3 + 1, 0)
    assert numbers.startswith(f"step 7: realised {float(f'{planar.realised[7]:.4g}'):.4g}"[:20])


def test_the_script_runs_on_a_long_episode(planar: ExplainedEpisode, tmp_path: Path) -> None:
    """Of 5,000 steps: as arguments of one function its 300,000 samples are too many."""
    steps = {
        name: np.concatenate([part] * 167)[:5000]
        for name, part in planar._asdict().items()
        if isinstance(part, np.ndarray)
    }
    fan, law, field, bad, _ = run_script(episode_page(planar._replace(field=None, **steps), "t"), tmp_path)
    assert (fan > 8, law, field, bad) == (True, 30 + 3 + 2, 0, 0)


def run_script(page: str, tmp_path: Path) -> list[Any]:
    """How many things it draws in each of three figures, how many with NaN, and the numbers that it shows."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("no node to run the script with")
    (script,) = (text for text in re.findall(r"<script>(.*?)</script>", page, re.DOTALL) if "data.mean.length" in text)
    # As much of a browser as it touches: elements that remember their children.
    browser = """
const element = () => ({ children: [], attributes: {}, setAttribute(k, v) { this.attributes[k] = String(v); },
  append(...c) { this.children.push(...c); }, replaceChildren() { this.children = []; }, addEventListener() {},
  getBoundingClientRect: () => ({ left: 0, width: 880 }) });
const known = {}, document = { createElementNS: element, getElementById: id => known[id] ??= element() };
known.episode = element(); known.episode.textContent = DATA; known.step = element(); known.step.value = '7';
"""
    data = json.dumps(page_data(page))
    end = """
const bad = Object.values(known).flatMap(e => e.children).filter(c => JSON.stringify(c.attributes).includes('NaN'));
console.log(JSON.stringify([known.fan.children.length, known.law.children.length, known.field?.children.length ?? 0,
  bad.length, known.numbers.textContent]));
"""
    (tmp_path / "page.js").write_text(browser.replace("DATA", json.dumps(data)) + script + end)
    done = subprocess.run([node, str(tmp_path / "page.js")], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    result: list[Any] = json.loads(done.stdout)
    return result


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--run", "nothere"], "run 'nothere' is not in 'sqlite:///"),
        (["--episode=1"], "one of the arguments --run --ckpt is required"),
        (["--run", "RUN", "--samples=3"], "expected an integer of at least 20, got '3'"),
        (["--run", "RUN", "--episodes=3"], "unknown option '--episodes=3'; did you mean '--episode'?"),
        (["--run", "RUN", "--out", "base.yaml"], "'base.yaml' is a file; expected a folder"),
    ],
)
def test_bad_input_is_one_line(
    run: str, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(Path().iterdir())
    assert main(["explain", *(run if word == "RUN" else word for word in arguments)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert sorted(Path().iterdir()) == before
