"""The data setting of a run in words, from its logged parameters."""

from __future__ import annotations

from collections.abc import Mapping

# What the agent takes where its option is None.
_DEFAULTS = {"model.overestimation": "Truncation 0.1", "model.divergence": "MaxSlicedMMD", "model.risk": "Mean"}
COLUMNS = ("targets", "draws", "pessimism", "gradients", "divergence", "risk", "updates_per_step")


def setting(params: Mapping[str, str]) -> dict[str, str]:
    """What a run's targets are made of.

    Args:
        params: flat parameters of the run, such as ``model.target_source``.

    Returns:
        targets: real or imagined transitions, and by which model; draws: samples M per transition and target critic;
        pessimism: the overestimation correction; gradients: which derivatives a sample has; divergence; risk: what the
        policy ascends; updates_per_step. Empty where it was not logged.
    """
    if "model.target_source" not in params:
        return dict.fromkeys(COLUMNS, "")
    samples = params.get("model.samples", "")
    targets = params.get("model.target_samples", "None")
    return {
        "targets": _targets(params["model.target_source"], _part(params, "model.world_model")),
        "draws": samples if targets == "None" else targets,
        "pessimism": _with_options(params, "model.overestimation"),
        "gradients": params.get("model.sobolev", "").replace("_", "-"),
        "divergence": _divergence(params),
        "risk": _with_options(params, "model.risk"),
        "updates_per_step": params.get("data.updates_per_step", ""),
    }


def in_words(row: Mapping[str, str]) -> str:
    """One line of the columns that decide whether two methods saw the same: targets, draws, pessimism.

    Also what the policy ascends, where that is not the mean; '' in tables of older reports.
    """
    if not row["targets"]:
        return ""
    draws = f", {row['draws']} draw{'' if row['draws'] == '1' else 's'}" if row["draws"] else ""
    ascends = f"; ascends {row['risk']}" if row["risk"] not in ("", "Mean") else ""
    return f"{row['targets']}{draws}; {row['pessimism']}{ascends}"


def _part(params: Mapping[str, str], key: str) -> str:
    name = params.get(key, "None").rpartition(".")[2]
    return _DEFAULTS.get(key, "") if name == "None" else name


def _targets(source: str, model: str) -> str:
    if not model:
        return "real transitions"
    return f"imagined by {model}" if source == "imagined" else f"real transitions, noise of {model} inferred"


def _with_options(params: Mapping[str, str], key: str) -> str:
    """The part and the values of its own options, such as ``CVaR 0.1 lower``; more than two are named."""
    own = {name.removeprefix(f"{key}."): value for name, value in sorted(params.items()) if name.startswith(f"{key}.")}
    options = [f"{name}={value}" for name, value in own.items()] if len(own) > 2 else own.values()
    return " ".join([_part(params, key), *options])


def _divergence(params: Mapping[str, str]) -> str:
    inner = _part(params, "model.divergence.divergence")
    name = _part(params, "model.divergence")
    return f"{name} of {inner}" if inner else name
