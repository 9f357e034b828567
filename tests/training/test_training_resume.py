"""A run that is cut off and gone on with is the run that was never cut off: real processes, really killed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from resume_runs import check_same, checkpoint, finish, killed, start, start_python, until


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("straight")
    finish(start_python(folder))
    return folder


def test_killed_at_twenty_random_moments(straight: Path, tmp_path: Path) -> None:
    torn = killed(tmp_path, 20, seed=0, mean_seconds=0.7, start=start)
    assert torn > 0  # some were killed while they wrote
    assert goes_on_from(finish(start(tmp_path, "--ckpt_path=last"))) > 0
    check_same(tmp_path, straight)
    assert not list(tmp_path.rglob(".*.part"))


def goes_on_from(out: str) -> int:
    """The step; a run that begins anew ends as the same run, too."""
    (step,) = re.findall(r"^going on from step (\d+) of ", out, re.M)
    assert not re.search(rf"^step (?:{'|'.join(str(s) for s in range(20, int(step) + 1, 20))})/", out, re.M)
    return int(step)


def test_many_seeds_killed(tmp_path: Path) -> None:
    finish(start_python(tmp_path / "straight", "--seeds=0-1"))
    cut_off = tmp_path / "cut_off"
    process = start(cut_off, "--seeds=0-1")
    until(lambda: list(cut_off.glob("mlruns/*/*/artifacts/checkpoints/previous.ckpt")))
    process.kill()
    process.communicate()
    assert goes_on_from(finish(start(cut_off, "--seeds=0-1", "--ckpt_path=last"))) >= 40
    check_same(cut_off, tmp_path / "straight")


def test_a_damaged_checkpoint_is_noticed_and_the_one_before_taken(straight: Path, tmp_path: Path) -> None:
    process = start(tmp_path)
    until(lambda: list(tmp_path.glob("mlruns/*/*/artifacts/checkpoints/previous.ckpt")))
    process.kill()
    process.communicate()
    last = checkpoint(tmp_path)
    content = bytearray(last.read_bytes())
    state = torch.load(last, weights_only=True)["state_dict"]
    weight = next(tensor for name, tensor in state.items() if name.startswith("policy.") and tensor.numel() > 100)
    content[content.index(weight.numpy().tobytes()) + 9] ^= 1  # one bit of it
    last.write_bytes(content)
    out = finish(start(tmp_path, "--ckpt_path=last"))
    assert re.search(r"checkpoint '.*last.ckpt' is damaged or not a checkpoint; going on from the one before", out)
    check_same(tmp_path, straight)
    for path in checkpoint(tmp_path).parent.glob("replay/*.pt"):
        path.unlink()
    process = start(tmp_path, "--ckpt_path=last")
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert out.startswith("dsob_pl: error: the replay files of checkpoint")
    assert out.count("\n") == 1


def test_without_a_run_to_go_on_with_one_line(tmp_path: Path) -> None:
    process = start(tmp_path, "--ckpt_path=last")
    out, _ = process.communicate(timeout=60)
    assert (process.returncode, out.count("\n")) == (2, 1)
    assert "ckpt_path: 'last': there is no MLflow database" in out
