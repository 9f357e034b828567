"""Bad input to policy evaluation: one line that says what is wrong, exit code 2, and no trace of a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from dsob_pl.cli import main

CONF = Path(__file__).resolve().parents[2] / "conf"
LQ = ["fit", f"--config={CONF / 'ground_truth' / 'linear_quadratic.yaml'}"]
POINT_MASS = ["fit", f"--config={CONF / 'ground_truth' / 'point_mass.yaml'}"]
CHAIN = ["fit", f"--config={CONF / 'ground_truth' / 'reward_chain.yaml'}"]
PENDULUM = ["fit", f"--config={CONF / 'pendulum.yaml'}"]
KNOWN = "--model.world_model=dsob_pl.world_models.KnownDynamics"
CALLBACK = "trainer: {callbacks: [{class_path: dsob_pl.ground_truth.%s}]}"
TRUTH = CALLBACK % "GroundTruth, init_args: {%s}"

# arguments, contents of the overlay over.yaml, fragments of the line
CASES: dict[str, tuple[list[str], str | None, list[str]]] = {
    "A not square": ([*LQ, "--data.env_kwargs.A=[[1.0,0.0,0.0],[0.0,1.0,0.0]]"], None, ["A: expected shape [2, 2]"]),
    "A a row": ([*LQ, "--data.env_kwargs.A=[[1.0,2.0]]"], None, ["LinearQuadratic.A: expected shape", "got [1, 2]"]),
    "A of text": ([*LQ, "--data.env_kwargs.A=abc"], None, ["LinearQuadratic.A: expected numbers", "'abc'"]),
    "A of another size than B": (
        [*LQ, "--data.env_kwargs.A=[[0.5]]", "--data.env_kwargs.B=[[1.0],[1.0]]"],
        None,
        ["LinearQuadratic.B: expected shape [1, any], got [2, 1]"],
    ),
    "Q of another size": ([*LQ, "--data.env_kwargs.Q=[[1.0]]"], None, ["Q: expected shape [2, 2], got [1, 1]"]),
    "R not symmetric": ([*LQ, "--data.env_kwargs.R=[[1.0,0.5],[0.0,1.0]]"], None, ["R: expected a symmetric matrix"]),
    "unknown matrix": ([*LQ, "--data.env_kwargs.AA=[[1.0]]"], None, ["'AA' is not an argument", "'A'"]),
    "locations": ([*POINT_MASS, "--data.env_kwargs.locations=0"], None, ["PointMass.locations", "at least 1", "0"]),
    "gamma": ([*LQ, "--model.gamma=1.0"], None, ["model.gamma: expected a number in [0, 1), got 1.0"]),
    "negative gamma": ([*LQ, "--model.gamma=-0.1"], None, ["model.gamma", "[0, 1)"]),
    "noise": ([*POINT_MASS, f"--config={CONF / 'noise' / 'action.yaml'}"], None, ["GroundTruth", "without data.noise"]),
    "unstable loop": ([*LQ, "--model.policy.gain=1.5"], None, ["closed loop is unstable", "spectral radius 2.34"]),
    "unstable system": ([*LQ, "--data.env_kwargs.A=[[1.6,0.0],[0.0,0.5]]"], None, ["closed loop is unstable", "1.04"]),
    "gain of another shape": ([*LQ, "--model.policy.gain=[[1.0,2.0,3.0]]"], None, ["LinearPolicy.gain", "[2, 2]"]),
    "gain of text": ([*LQ, "--model.policy.gain=abc"], None, ["gain", "'abc'"]),
    "number for other sizes": ([*CHAIN, "--model.policy.gain=0.5"], None, ["LinearPolicy.gain", "as many actions"]),
    "truth of Pendulum": (PENDULUM, TRUTH % "every: 5", ["GroundTruth: 'Pendulum-v1' has no known dynamics"]),
    "dynamics of Pendulum": ([*PENDULUM, KNOWN], None, ["KnownDynamics needs", "'Pendulum-v1' has none"]),
    "replayed on the point mass": (
        [*POINT_MASS, "--model.target_source=replayed"],
        None,
        ["model.target_source", "'replayed'", "KnownDynamics does not on 'dsob_pl/PointMass-v0'", "'imagined'"],
    ),
    "replayed on the chain": ([*CHAIN, "--model.target_source=replayed"], None, ["'replayed'", "RewardChain-v0"]),
    "every": (LQ, TRUTH % "every: 0", ["GroundTruth.every: expected at least 1, got 0"]),
    "pairs": (LQ, TRUTH % "pairs: 0", ["GroundTruth.pairs: expected at least 1, got 0"]),
    "negative samples": (LQ, TRUTH % "samples: -3", ["trainer.callbacks.0.init_args.samples", "got -3"]),
    "samples": (LQ, TRUTH % "samples: 1", ["GroundTruth.samples: expected at least 10, got 1"]),
    "text": (LQ, TRUTH % "every: often", ["over.yaml: trainer.callbacks.0.init_args.every", "an integer", "'often'"]),
    "argument": (LQ, TRUTH % "evry: 5", ["over.yaml: trainer.callbacks.0.init_args.evry", "'every'"]),
    "argument on the command line": ([*LQ, "--trainer.callbacks.init_args.evry=5"], None, ["evry"]),
    "class": (LQ, CALLBACK % "GroundTruht", ["over.yaml: trainer.callbacks.0.class_path", "'GroundTruth'"]),
}


@pytest.mark.parametrize("name", CASES)
def test_one_line_exit_code_two_and_no_trace(name, tmp_path, monkeypatch, capfd):
    arguments, overlay, fragments = CASES[name]
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DSOB_PL_TRACEBACK", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    if overlay is not None:
        (tmp_path / "over.yaml").write_text(overlay)
        arguments = [*arguments, "--config=over.yaml"]

    assert main(arguments) == 2

    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("dsob_pl: error: ")
    assert err.count("\n") == 1
    assert len(err) < 420
    for fragment in fragments:
        assert fragment in err
    assert [path.name for path in tmp_path.iterdir()] == ([] if overlay is None else ["over.yaml"])
