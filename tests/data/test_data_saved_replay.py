"""Files of transitions that are handed in: what a collection could have stored is taken, all else is one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import TINY_MODEL
from torch import Tensor

from dsob_pl.cli import main
from dsob_pl.data import ReplayDataModule, build_replay, load_replay, save_replay, transitions
from dsob_pl.data.replay import FIELDS, replay_state
from dsob_pl.errors import UsageError

BASE = (
    TINY_MODEL
    + """\
threads: 1
trainer: {max_steps: 12, val_check_interval: 12, log_every_n_steps: 4, logger: false}
data: {env_id: Pendulum-v1, warmup_steps: 4, updates_per_step: 1, batch_size: 8, evaluation_episodes: 1}
"""
)
TD3 = ["--config", str(Path(__file__).parents[2] / "conf" / "method" / "td3.yaml")]
COLLECT = {"collecting": [], "not collecting": ["--data.collect=false"]}
N = 60


def stored(**changes: Any) -> dict[str, Any]:
    """N transitions of a pendulum as ``save_replay`` writes them, but for ``changes``; None leaves a field out."""
    generator = torch.Generator().manual_seed(0)
    data: dict[str, Any] = {
        "size": N,
        "cursor": 0,
        "observation": torch.randn(N, 3, generator=generator),
        "action": torch.rand(N, 1, generator=generator) * 2 - 1,
        "next_observation": torch.randn(N, 3, generator=generator),
        "reward": -torch.rand(N, 1, generator=generator),
        "terminated": torch.arange(N).unsqueeze(1) % 7 == 6,
        "truncated": torch.arange(N).unsqueeze(1) % 10 == 9,
    }
    return {name: value for name, value in (data | changes).items() if value is not None}


def with_entry(field: str, value: float, row: int = 5) -> Tensor:
    tensor: Tensor = stored()[field].clone()
    tensor[row, 0] = value
    return tensor


def written(path: Path, **changes: Any) -> Path:
    torch.save({"replay": stored(**changes)}, path)
    return path


@pytest.fixture
def fit(tmp_path, monkeypatch, capfd):
    (tmp_path / "base.yaml").write_text(BASE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DSOB_PL_TRACEBACK", raising=False)

    def run(*more: str) -> tuple[int, list[str]]:
        code = main(["fit", "--config", "base.yaml", *more])
        return code, capfd.readouterr().err.strip().splitlines()

    return run


def test_files_hold_the_transitions_in_order_and_nothing_but_tensors(tmp_path: Path) -> None:
    replay = build_replay(40, 0)
    replay.extend(load_replay(written(tmp_path / "more.pt")))
    save_replay(replay, tmp_path / "data.pt")
    assert (load_replay(tmp_path / "data.pt") == transitions(replay)).all()
    assert (load_replay(tmp_path / "data.pt") == load_replay(tmp_path / "more.pt")[-40:]).all()


def test_bad_files_are_named(tmp_path: Path) -> None:
    contents: dict[str, Any] = {
        "other.pt": {"a": torch.zeros(3)},
        "list.pt": [1, 2],
        "list inside.pt": {"replay": [1, 2]},
        "list in a checkpoint.pt": {"ReplayDataModule": [1]},
        "none in a checkpoint.pt": {"ReplayDataModule": None},
        "files of another.pt": {"ReplayDataModule": {"replay": {"size": 3, "cursor": 0}, "files": {"a": 1}}},
        "numbers.pt": {"replay": stored(observation=[[1.0, 2.0, 3.0]] * N)},
        "empty.pt": {"replay": replay_state(build_replay(3, 0))},
    }
    for name, content in contents.items():
        torch.save(content, tmp_path / name)
    (tmp_path / "text.pt").write_text("hello")
    for name in ("missing.pt", "text.pt", ".", *contents):
        with pytest.raises(UsageError, match=r"data\.replay_path") as raised:
            load_replay(tmp_path / name)
        assert name in str(raised.value) or name == "."
        assert "\n" not in str(raised.value)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a reward as vector": ({"reward": torch.zeros(N)}, f"expected reward [{N}, 1], got [{N}]"),
    "two rewards": ({"reward": torch.zeros(N, 2)}, f"expected reward [{N}, 1], got [{N}, 2]"),
    "two flags": ({"truncated": torch.zeros(N, 2).bool()}, f"expected truncated [{N}, 1], got [{N}, 2]"),
    "too few flags": ({"terminated": torch.zeros(9, 1).bool()}, f"expected terminated [{N}, 1], got [9, 1]"),
    "an action as vector": ({"action": torch.zeros(N)}, f"expected action [{N}, size], got [{N}]"),
    "a wide state": ({"next_observation": torch.zeros(N, 4)}, f"expected next_observation [{N}, 3], got [{N}, 4]"),
    "images": ({"observation": torch.zeros(N, 3, 2)}, f"expected observation [n, size] with n of at least 1, got [{N}"),
    "no rows": ({"observation": torch.zeros(0, 3)}, "expected observation [n, size] with n of at least 1, got [0, 3]"),
    "complex": ({"reward": torch.zeros(N, 1) + 1j}, "expected reward as a plain tensor of real numbers, got complex64"),
    "bool": ({"reward": torch.zeros(N, 1).bool()}, "expected reward as a plain tensor of real numbers, got bool"),
    "sparse": ({"observation": torch.eye(N, 3).to_sparse()}, "expected observation as a plain tensor of real numbers"),
    "no flag": ({"terminated": with_entry("reward", 0.5) * 0 + 0.5}, "true and false, or 1 and 0, in terminated, got"),
    "flag of 2": ({"truncated": with_entry("truncated", 1).long() * 2}, "in truncated, got 2 in row 5"),
    "flag of NaN": ({"truncated": with_entry("reward", 1) * torch.nan}, "in truncated, got nan in row 0"),
    "NaN reward": ({"reward": with_entry("reward", torch.nan)}, "expected finite numbers in reward, got nan in row 5"),
    "large": ({"reward": stored()["reward"].double() - 1e300}, "expected finite numbers in reward, got -inf in row 0"),
    "observation": ({"observation": with_entry("observation", torch.inf)}, "finite numbers in observation, got inf in"),
    "NaN action": ({"action": with_entry("action", torch.nan)}, "finite numbers in action, got nan in row 5"),
    "NaN in mid-episode": (
        {"next_observation": with_entry("next_observation", torch.nan)},
        "expected finite numbers in next_observation, or NaN where terminated, got nan in row 5",
    ),
    "infinite end": (
        {"next_observation": with_entry("next_observation", torch.inf, row=6)},
        "expected finite numbers in next_observation, or NaN where terminated, got inf in row 6",
    ),
    "action": (
        {"action": with_entry("action", -2.0)},
        "expected action in [-1, 1], scaled from the environment's limits, got -2 in row 5",
    ),
    "cursor": ({"cursor": 1.5}, f"expected an integer cursor from 0 to {N}, got 1.5"),
    "cursor behind": ({"cursor": N + 1}, f"expected an integer cursor from 0 to {N}, got {N + 1}"),
    "cursor of text": ({"cursor": "0"}, f"expected an integer cursor from 0 to {N}, got '0'"),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
def test_what_no_collection_would_store_is_refused(wrong: str, tmp_path: Path) -> None:
    changes, message = WRONG[wrong]
    path = written(tmp_path / "data.pt", **changes)
    with pytest.raises(UsageError) as raised:
        load_replay(path)
    assert str(raised.value).startswith(f"data.replay_path: '{path}': ")
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("wrong", ["two rewards", "a wide state", "NaN reward", "action"])
@pytest.mark.parametrize("how", COLLECT)
def test_a_run_refuses_it_in_one_line(wrong: str, how: str, fit, tmp_path: Path) -> None:
    changes, message = WRONG[wrong]
    written(tmp_path / "data.pt", **changes)
    code, lines = fit("--data.replay_path=data.pt", *COLLECT[how])
    assert code == 2
    assert len(lines) == 1
    assert f"data.replay_path: 'data.pt': {message}" in lines[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base.yaml", "data.pt"]


TYPES: dict[str, dict[str, Any]] = {
    "float64": {name: stored()[name].double() for name in ("observation", "action", "next_observation", "reward")},
    "float16 observations": {name: stored()[name].half() for name in ("observation", "next_observation")},
    "integer rewards": {"reward": torch.arange(N).unsqueeze(1)},
    "float flags": {name: stored()[name].float() for name in ("terminated", "truncated")},
    "integer flags": {name: stored()[name].long() for name in ("terminated", "truncated")},
    "parameters": {name: torch.nn.Parameter(stored()[name]) for name in ("observation", "reward")},
    "no cursor": {"cursor": None, "size": None},
    "rounded actions": {"action": stored()["action"].sign() * (1 + 1e-7)},
    "NaN at the ends": {"next_observation": stored()["next_observation"].where(~stored()["terminated"], torch.nan)},
}


@pytest.mark.parametrize("kind", TYPES)
def test_types_of_other_programs_become_those_of_a_collection(kind: str, tmp_path: Path) -> None:
    data = load_replay(written(tmp_path / "data.pt", **TYPES[kind]))
    own = ReplayDataModule("Pendulum-v1", capacity=100, warmup_steps=100).step().new
    assert own is not None
    for key in FIELDS.values():
        assert data[key].dtype == own[key].dtype, key
        assert not data[key].requires_grad
    expected = stored(**TYPES[kind])
    for name, key in FIELDS.items():
        torch.testing.assert_close(data[key], expected[name].detach().to(data[key].dtype), equal_nan=True)
    assert data["action"].abs().max() <= 1


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize(("how", "more"), [("collecting", []), ("not collecting", TD3)])
def test_a_run_trains_on_them(kind: str, how: str, more: list[str], fit, tmp_path: Path) -> None:
    written(tmp_path / "data.pt", **TYPES[kind])
    code, lines = fit("--data.replay_path=data.pt", *COLLECT[how], *more)
    assert code == 0, lines


def test_a_replay_file_beside_a_checkpoint_will_do(fit, tmp_path: Path) -> None:
    assert fit()[0] == 0
    (segment,) = tmp_path.rglob("checkpoints/replay/*.pt")
    assert (load_replay(segment) == load_replay(segment.parents[1] / "last.ckpt")).all()
    code, lines = fit(f"--data.replay_path={segment}", "--data.collect=false")
    assert code == 0, lines
    segment.unlink()
    with pytest.raises(UsageError, match=r"data.replay_path: '.*last.ckpt': .*replay file '.*\.pt' is missing"):
        load_replay(segment.parents[1] / "last.ckpt")


def test_a_checkpoint_of_several_seeds_is_called_one(fit, tmp_path: Path) -> None:
    assert fit("--seeds=0-1")[0] == 0
    (segments,) = tmp_path.rglob("checkpoints/replay")
    code, (line,) = fit(f"--data.replay_path={segments.parent / 'last.ckpt'}", "--data.collect=false")
    assert code == 2
    assert "data.replay_path" in line
    assert "of several seeds" in line
