"""A config that the schema allows runs, or is refused in one line that names what does not go together."""

from __future__ import annotations

import re
from pathlib import Path

import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from dsob_pl.cli import main

CONF = Path(__file__).resolve().parent.parent / "conf"
LARGE = ("large_model",)  # sizes, not choices
METHODS = sorted(CONF.glob("method/*.yaml"))
FURTHER = [p for p in sorted([*CONF.glob("ablation/*.yaml"), *CONF.glob("noise/*.yaml")]) if p.stem not in LARGE]

MODEL = {
    "sobolev": st.sampled_from(["none", "action", "state_action"]),
    "target_source": st.sampled_from(["imagined", "replayed"]),
    "gamma": st.sampled_from([0.0, 0.5, 0.99]),
    "tau": st.sampled_from([0.0, 0.01, 1.0]),
    "samples": st.integers(1, 4),
    "target_samples": st.sampled_from([None, 1, 3]),
    "gradient_weight": st.sampled_from([0.0, 1.0, 3.0]),
    "gradient_rms_limit": st.sampled_from([None, 0.02]),
    "gradient_bound": st.sampled_from([None, 0.2]),
    "return_range": st.sampled_from([None, 10.0]),
    "policy_delay": st.integers(1, 3),
    "exploration_std": st.sampled_from([0.0, 0.3]),
    "policy_samples": st.sampled_from([None, 1, 6]),
    "risk": st.sampled_from([None, "dsob_pl.risk.Mean", "dsob_pl.risk.CVaR", "dsob_pl.risk.Entropic"]),
    "target_policy_noise": st.sampled_from([0.0, 0.2]),
    "max_gradient_norm": st.sampled_from([0.1, 10.0]),
    "diagnostic_samples": st.integers(1, 9),
    "normalize_observations": st.booleans(),
    "jacobian_penalty": st.sampled_from([0.0, 0.1]),
    "jacobian_bound": st.sampled_from([None, 0.5]),
    "divergence_margin": st.sampled_from([None, 0.1, 1.5]),
    "policy_optimizer": st.sampled_from([None, {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.01}}]),
    "overestimation": st.sampled_from(
        [
            *(f"dsob_pl.bellman.{n}" for n in ("Truncation", "LowerMean", "NoCorrection")),
            {"class_path": "dsob_pl.bellman.AdaptivePessimism", "init_args": {"every": 1, "drift": 0.1}},
        ]
    ),
}
DATA = {
    "env_id": st.sampled_from(["Pendulum-v1", "InvertedPendulum-v5", "dsob_pl/PointMass-v0", "dsob_pl/Summit-v0"]),
    "capacity": st.integers(1, 50),
    "batch_size": st.integers(1, 4),
    "updates_per_step": st.integers(1, 2),
    "warmup_steps": st.integers(0, 2),
    "evaluation_episodes": st.integers(1, 2),
    "holdout_fraction": st.sampled_from([0.0, 0.5]),
    "restart_budget": st.integers(0, 2),
}
ALWAYS = ("env_id", "batch_size", "updates_per_step", "warmup_steps", "capacity")  # else of a size for a real run
SECTIONS = st.fixed_dictionaries(
    {
        "model": st.fixed_dictionaries({"init_args": st.fixed_dictionaries({}, optional=MODEL)}),
        "data": st.fixed_dictionaries(
            {name: DATA[name] for name in ALWAYS}, optional={n: v for n, v in DATA.items() if n not in ALWAYS}
        ),
    }
)
FILES = st.lists(st.sampled_from(METHODS), max_size=1), st.lists(st.sampled_from(FURTHER), max_size=2, unique=True)
TRAINER = {
    "max_steps": 3, "val_check_interval": 3, "log_every_n_steps": 2, "logger": False, "enable_checkpointing": False,
    "enable_progress_bar": False,
}  # fmt: skip


@settings(
    max_examples=20,
    phases=[Phase.generate],  # a config is short enough to read as it is, and each try costs seconds
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(methods=FILES[0], further=FILES[1], drawn=SECTIONS)
def test_a_valid_config_runs_three_steps_or_is_refused_by_name(methods, further, drawn, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    drawn["data"]["env_kwargs"] = {"max_episode_steps": 3}
    text = yaml.safe_dump({**drawn, "trainer": TRAINER, "threads": 1})
    (tmp_path / "drawn.yaml").write_text(text)
    files = [CONF / "debug.yaml", *methods, *further, "drawn.yaml"]

    code = main(["fit", *(f"--config={file}" for file in files)])

    out, err = capfd.readouterr()
    said = f"{[Path(f).stem for f in files]}\n{text}\n{err}"
    if code == 0:
        assert out == "finished at step 3\n", said
        return
    errors = [line for line in err.splitlines() if line.startswith("dsob_pl: error: ")]
    assert len(errors) == 1, said
    assert code == 2, said
    assert "Traceback" not in err, said
    named = re.findall(r"\b(?:model|data|trainer)(?:\.init_args)?\.([a-z_]+)", errors[0])
    assert named, said
    assert sorted(p.name for p in tmp_path.iterdir()) == ["drawn.yaml"], said
