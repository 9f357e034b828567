"""``evaluate``: return statistics of a trained policy, and a video of it."""

from __future__ import annotations

import argparse
import json
import math
from typing import Any

from dsob_pl.cli.options import Parser, add_source, at_least
from dsob_pl.errors import UsageError

PARALLEL_ENVIRONMENTS = 10  # one batched policy call for so many episodes; more cost memory and gain little


def parser() -> Parser:
    """The options of ``evaluate``."""
    result = Parser(
        prog="python -m dsob_pl evaluate",
        description="Episodes of a trained policy, without exploration.",
        allow_abbrev=False,
    )
    add_source(result)
    result.add_argument("--episodes", type=at_least(1), default=10, metavar="N", help="number of episodes (10)")
    result.add_argument(
        "--seed", type=at_least(0), metavar="S", help="reset seed of the first episode (that of the run's evaluations)"
    )
    result.add_argument("--env_id", metavar="ID", help="evaluate in another environment than the run's")
    result.add_argument("--video", metavar="MP4", help="record one more episode, with the first seed, to this file")
    result.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    result.add_argument("--device", default="cpu", help="where the policy runs (cpu)")
    return result


def evaluate(arguments: list[str]) -> int:
    """Runs the subcommand and returns its exit code.

    Raises:
        UsageError: bad options, no such run or checkpoint, or an environment that does not fit it.
    """
    options = parser().read(arguments)
    if options is None:
        return 0
    result = _evaluate(options)
    if options.json:
        print(json.dumps(result))
    else:
        print(_table(result))
    return 0


def _evaluate(options: argparse.Namespace) -> dict[str, Any]:
    import torch

    from dsob_pl.cli.loading import build_noise, evaluation_env_kwargs, load_source
    from dsob_pl.envs import make_env, record_video, run_episodes
    from dsob_pl.risk import Mean

    try:
        device = torch.device(options.device)
        float(torch.zeros((), device=device))
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"evaluate: there is no device '{options.device}' here") from error
    agent, config, sizes, path = load_source(options, str(device))
    if not hasattr(agent, "act"):
        raise UsageError(f"evaluate: '{type(agent).__name__}' has no policy; it is not an agent")
    data = config.get("data", {})
    env_id = options.env_id or data["env_id"]
    env_kwargs = evaluation_env_kwargs(data) if options.env_id is None else None
    noise = [] if options.clean else build_noise(config, own_env=options.env_id is None)
    first = data.get("evaluation_seed", 10_000) if options.seed is None else options.seed
    gamma = float(getattr(agent, "gamma", 1.0))

    seeds = list(range(first, first + options.episodes))
    count = min(options.episodes, PARALLEL_ENVIRONMENTS)
    envs = [make_env(env_id, env_kwargs=env_kwargs, noise=noise) for _ in range(count)]
    for space in ("observation", "action"):
        own, there = sizes.get(f"{space}_size"), getattr(envs[0], f"{space}_space").shape[0]
        if own != there:
            raise UsageError(f"evaluate: the policy has {space}s of size {own}, '{env_id}' has {there}")
    if options.video:  # first: what is wrong with it is then known before the episodes are played
        made = dict[str, Any](env_kwargs=env_kwargs, noise=noise, gamma=gamma, device=device)
        record_video(env_id, agent.act, options.video, first, **made)
    parts = [run_episodes(envs, agent.act, seeds[i : i + count], gamma, device) for i in range(0, len(seeds), count)]
    for env in envs:
        env.close()
    returns, lengths, discounted = (
        torch.cat([getattr(part, field).double() for part in parts])
        for field in ("returns", "lengths", "discounted_returns")
    )
    risk = getattr(agent, "evaluation_risk", Mean())
    return {
        "checkpoint": str(path),
        "env_id": env_id,
        "noise": [] if options.clean else data.get("noise") or [],
        "episodes": options.episodes,
        "seed": first,
        "return": _statistics(returns),
        "length": _statistics(lengths),
        "discounted_return": _statistics(discounted),
        # Of whole episodes, in their discounted returns; what the mean would say is said already.
        "risk": None if isinstance(risk, Mean) else _measured(risk, agent.risk_of(discounted)),
        "returns": returns.tolist(),
        "video": options.video,
    }


def _class_path(noise: Any) -> str:
    return str(noise["class_path"] if isinstance(noise, dict) else noise)


def _statistics(values: Any) -> dict[str, float | None]:
    named = {
        "mean": values.mean(),
        "std": values.std(correction=0),
        "min": values.min(),
        "max": values.max(),
    }
    return {name: _finite(value) for name, value in named.items()}


def _measured(risk: Any, value: Any) -> dict[str, Any]:
    options = {name: x for name, x in vars(risk).items() if isinstance(x, int | float | str) and name[0] != "_"}
    return {"measure": type(risk).__name__, "options": options, "value": _finite(value)}


def _finite(value: Any) -> float | None:
    return float(value) if math.isfinite(value) else None


def _table(result: dict[str, Any]) -> str:
    names = [text.rpartition(".")[2] for text in (_class_path(noise) for noise in result["noise"])]
    name = " with ".join([result["env_id"], *([", ".join(names)] if names else [])])
    lines = [f"{name}, {result['episodes']} episodes from seed {result['seed']}, {result['checkpoint']}"]
    lines.append(f"{'':18}{'mean':>12}{'std':>12}{'min':>12}{'max':>12}")
    for name in ("return", "length", "discounted_return"):
        values = (result[name][kind] for kind in ("mean", "std", "min", "max"))
        cells = "".join(f"{'-' if v is None else f'{v:,.1f}':>12}" for v in values)
        lines.append(f"{name.replace('_', ' '):18}{cells}")
    if result["risk"]:
        measure, options, value = (result["risk"][name] for name in ("measure", "options", "value"))
        given = ", ".join(f"{name} {x}" for name, x in options.items())
        lines.append(f"{measure}({given}) of the discounted return: {'-' if value is None else f'{value:,.1f}'}")
    if result["video"]:
        lines.append(f"video: {result['video']}")
    return "\n".join(lines)
