"""``explain``: one episode of a trained agent, with the law of the return that it predicted at every step."""

from __future__ import annotations

from pathlib import Path

from dsob_pl.cli.options import Parser, add_source, at_least, check_folder
from dsob_pl.errors import UsageError

_DOTS = 130  # per inch


def parser() -> Parser:
    """The options of ``explain``."""
    result = Parser(
        prog="python -m dsob_pl explain",
        description="Plays one episode and draws the predicted law of the return over time, what was realised, and the "
        "action gradients: OUT/explain.png, and OUT/explain.html to scrub through.",
        allow_abbrev=False,
    )
    add_source(result)
    result.add_argument("--episode", type=at_least(0), default=0, metavar="SEED", help="reset seed (0)")
    result.add_argument("--samples", type=at_least(20), default=200, metavar="N", help="of each critic and step (200)")
    result.add_argument("--max_steps", type=at_least(1), metavar="T", help="cut the episode off after so many steps")
    result.add_argument("--out", metavar="DIR", default="explained", help="folder of the two files (explained)")
    return result


def explain(arguments: list[str]) -> int:
    """Runs the subcommand and returns its exit code.

    Raises:
        UsageError: bad options, no such run or checkpoint, a deterministic critic, a folder that cannot be written to.
    """
    options = parser().read(arguments)
    if options is None:
        return 0
    from gymnasium.wrappers import TimeLimit

    from dsob_pl.analysis.episode import explain_episode
    from dsob_pl.analysis.episode_figure import coverage_line, episode_figure
    from dsob_pl.analysis.episode_page import episode_page
    from dsob_pl.cli.loading import build_noise, evaluation_env_kwargs, load_source
    from dsob_pl.envs import make_env

    out = Path(options.out)
    check_folder(out)
    agent, config, _, path = load_source(options)
    if not hasattr(agent, "value_distribution"):
        raise UsageError(f"explain: '{type(agent).__name__}' predicts no law of the return; it is not an agent")
    if not agent.critic.noise_size:
        raise UsageError(
            f"explain: the critic of '{path}' is deterministic (noise_size 0): it predicts no law of the return"
        )
    data = config.get("data", {})
    noise = [] if options.clean else build_noise(config)
    env = make_env(data["env_id"], env_kwargs=evaluation_env_kwargs(data), noise=noise)
    if options.max_steps:
        env = TimeLimit(env, options.max_steps)
    episode = explain_episode(agent, env, options.episode, options.samples)
    env.close()
    title = f"{data['env_id']}, seed {options.episode}: return {episode.rewards.sum():,.1f}"
    out.mkdir(parents=True, exist_ok=True)
    episode_figure(episode, title).savefig(out / "explain.png", dpi=_DOTS, facecolor="white")
    (out / "explain.html").write_text(episode_page(episode, title), encoding="utf-8")
    ended = "terminated" if episode.terminated else "was cut off"
    print(f"{title}; {len(episode.rewards)} steps, {ended}; {path}")
    print(coverage_line(episode))
    print(f"picture: {out / 'explain.png'}, to scrub through: {out / 'explain.html'}")
    return 0
