"""Recent returns and the law predicted for them: by hand, where the law is right, and in training."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import lightning as L
import pytest
import torch
from scipy import stats
from tensordict import TensorDict
from tiny import parameters, tiny_agent, tiny_seeds, tiny_trainer

from dsob_pl.agents import SobolevActorCritic
from dsob_pl.agents.recent_returns import adapt_pessimism, foresight, judge_recent, returns_to_go
from dsob_pl.bellman import AdaptivePessimism, Truncation
from dsob_pl.critics import Critic, GenerativeCritic
from dsob_pl.data import ReplayDataModule
from dsob_pl.errors import UsageError

GAMMA, ENDS = 0.8, 0.1  # discount, and probability that an episode ends with a step


class Law(Critic):
    """Returns of rewards that are standard normal, independent, and end with probability ENDS at every step."""

    def __init__(self, shift: float = 0.0) -> None:
        super().__init__()
        self.ensemble_size, self.noise_size, self.shift = 2, 40, shift
        self.unused = torch.nn.Parameter(torch.zeros(()))

    def forward(self, s, a, noise):
        # Forty steps; the first of each pair of numbers is a reward, the second says whether it was the last.
        reward, end = noise[..., ::2], torch.special.ndtr(noise[..., 1::2]) < ENDS
        alive = torch.cat([torch.ones_like(end[..., :1]), ~end[..., :-1]], -1).cumprod(-1)
        discount = GAMMA ** torch.arange(reward.shape[-1])
        return (reward * alive * discount).sum(-1) + self.shift + 0 * (s.sum(-1) + a.sum(-1))


def agent_with(critic: Critic, **options: object):
    pessimism = AdaptivePessimism(**{"initial": 0.0, **options})  # type: ignore[arg-type]
    agent, _ = tiny_agent("dsob_pl/Rotation-v0", 8, gamma=GAMMA, overestimation=pessimism)
    agent.critic = critic
    return agent


def stretch(n: int, seed: int, time_limit: int = 0) -> TensorDict:
    draw = torch.Generator().manual_seed(seed)
    observation = torch.randn(n + 1, 2, generator=draw)
    ended = torch.rand(n, 1, generator=draw) < ENDS
    truncated = torch.zeros(n, 1, dtype=torch.bool)
    if time_limit:
        truncated[time_limit - 1 :: time_limit] = True
    following = {
        "observation": observation[1:], "reward": torch.randn(n, 1, generator=draw),
        "terminated": ended, "truncated": truncated & ~ended,
    }  # fmt: skip
    action = torch.rand(n, 2, generator=draw) * 2 - 1
    return TensorDict({"observation": observation[:-1], "action": action, "next": TensorDict(following, [n])}, [n])


def test_returns_to_go_by_hand(float64):
    rewards = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    terminated = torch.tensor([0.0, 1.0, 0.0, 0.0, 0.0])
    cut = torch.tensor([False, False, True, False, False])
    rest = torch.tensor([100.0, 100.0, 10.0, 100.0, 20.0])
    returns = returns_to_go(rewards, terminated, cut, rest, 0.5)
    # 2 ends; 3 is cut off, 10 standing for what would have followed; 5 is the last row, with 20.
    assert returns.tolist() == [1 + 0.5 * 2, 2, 3 + 0.5 * 10, 4 + 0.5 * 15, 5 + 0.5 * 20]


def test_foresight_is_where_the_rest_counts_for_a_fifth():
    assert foresight(0.98) == 80
    assert 0.98**80 <= 0.2 < 0.98**79
    assert (foresight(0.0), foresight(0.01)) == (1, 1)


@pytest.mark.parametrize("time_limit", [0, 7])
def test_where_the_law_is_right_the_ranks_are_uniform(time_limit, float64):
    agent = agent_with(Law())
    drawn = [
        # Few and far between, of many stretches: neighbours share most of their rewards.
        judge_recent(agent, stretch(60, seed, time_limit), torch.Generator().manual_seed(seed)).places[::20]
        for seed in range(400)
    ]
    places = torch.cat(drawn)
    assert len(places) == 400 * 3
    assert stats.kstest(places.numpy(), "uniform").pvalue > 0.01
    for shift, way in ((1.0, -1), (-1.0, 1)):
        moved = judge_recent(agent_with(Law(shift)), stretch(400, 0, time_limit), torch.Generator().manual_seed(0))
        assert way * (moved.places.mean() - 0.5) > 0.1
        assert way * moved.balance() > 0.2
        assert moved.balance() == pytest.approx((moved.errors.sum() / moved.errors.abs().sum()).item())


def test_what_is_too_near_to_the_end_is_not_judged_and_a_gap_is_a_cut(float64):
    agent = agent_with(Law())
    draw = torch.Generator().manual_seed(0)
    assert foresight(GAMMA) == 8
    assert judge_recent(agent, stretch(8, 0), draw) is None
    assert len(judge_recent(agent, stretch(9, 0), draw).places) == 1
    # Rewards of 1,000 behind a gap must not be counted before it; the law lies far below them.
    first, second = stretch(30, 1), stretch(30, 2)
    second["next", "reward"] += 1000
    places, errors = judge_recent(agent, torch.cat([first, second]), draw)
    assert places[:20].mean() < 0.8
    assert (places[30:] > 0.99).all()
    assert (errors[:20].abs() < 100).all()
    assert (errors[30:] > 500).all()


class Written:
    """A buffer of ``total`` transitions so far."""

    def __init__(self, data: TensorDict) -> None:
        self.data, self.total, self.asked = data, 0, []

    def __len__(self) -> int:
        return min(self.total, 100)

    def newest(self, n: int) -> TensorDict:
        self.asked.append(n)
        return self.data[self.total - n : self.total]


def test_it_looks_when_it_is_due_at_what_the_policy_made_itself():
    agent = agent_with(Law(shift=5.0), initial=0.2, rate=0.1, every=10, window=50)
    buffer, told = Written(stretch(200, 0)), {}
    for step in range(21, 130):  # the first twenty are random
        buffer.total = step
        if metrics := adapt_pessimism(agent, step, 1000, buffer):
            told[step] = metrics
    # Due at 30 for the first time, where its own transitions begin; ten of them are the first that can be judged.
    assert buffer.asked == [10, 20, 30, 40, 50, 50, 50, 50, 50]
    assert list(told) == [40, 50, 60, 70, 80, 90, 100, 110, 120]
    assert told[40]["critic/recent_pit"] < 0.1
    assert told[40]["critic/pessimism"] == pytest.approx(0.3, abs=0.02)
    assert agent.overestimation.weight == told[120]["critic/pessimism"] > 0.9
    other, _ = tiny_agent("dsob_pl/Rotation-v0", 8, overestimation=Truncation())
    assert adapt_pessimism(other, 50, 1000, buffer) == {}


def test_before_its_part_of_the_run_it_looks_only():
    agent = agent_with(Law(shift=5.0), initial=0.2, rate=0.1, every=10, window=50, after=0.5)
    buffer, weights = Written(stretch(200, 0)), {}
    for step in range(21, 130):
        buffer.total = step
        if metrics := adapt_pessimism(agent, step, 180, buffer):
            assert metrics["critic/recent_pit"] < 0.2
            weights[step] = float(metrics["critic/pessimism"])
    assert weights[40] == weights[90] == pytest.approx(0.2)
    assert 0.2 < weights[100] < weights[110] < weights[120]


class Torn(Law):
    """Two critics that are wrong by as much, one way and the other."""

    def forward(self, s, a, noise):
        shift = torch.tensor([3.0, -3.0]).view(2, *[1] * (noise.ndim - 2))
        return super().forward(s, a, noise) + shift


def test_what_completes_a_cut_episode_is_of_all_critics(float64):
    # Every second transition is cut, so it is always an odd one that is completed.
    agent = agent_with(Torn())
    drawn = [judge_recent(agent, stretch(400, k, 2), torch.Generator().manual_seed(k)).places for k in range(30)]
    assert torch.cat(drawn).mean() == pytest.approx(0.5, abs=0.03)


def build(seed: int = 0, **options: object):
    own = {
        "gamma": 0.5,
        "overestimation": AdaptivePessimism(initial=0.5, rate=0.05, every=4, window=12, drift=0.01),
        "sobolev": "state_action",
    }
    return tiny_agent("dsob_pl/Rotation-v0", 8, seed=seed, **{**own, **options})


@pytest.mark.parametrize("holdout", [0.0, 0.5])
def test_many_seeds_adapt_as_each_alone(holdout: float, tmp_path: Path) -> None:
    def held_out(seed: int):
        agent, data = build(seed)
        options = {"holdout_fraction": holdout, "seed": seed}
        return agent, ReplayDataModule(data.env_id, {"max_episode_steps": 8}, 1000, 8, 3, 5, 1, **options)

    module, data = tiny_seeds(held_out)
    tiny_trainer(tmp_path, 45).fit(module, data)
    weights = []
    for seed, agent in enumerate(module.agents):
        single, own = held_out(seed)
        trainer = tiny_trainer(tmp_path, 45)
        trainer.fit(single, own)
        assert single.overestimation.weight == pytest.approx(float(agent.overestimation.weight), rel=1e-3)
        assert "critic/pessimism" in single._latest
        torch.testing.assert_close(parameters(agent), parameters(single), rtol=1e-3, atol=1e-4)
        weights.append(float(single.overestimation.weight))
    assert 0.5 not in weights
    assert weights[0] != weights[1]


def test_a_run_that_is_resumed_goes_on_as_it_would_have(tmp_path: Path) -> None:
    straight, data = build()
    tiny_trainer(tmp_path, 30).fit(straight, data)
    first, data = build()
    trainer = tiny_trainer(tmp_path, 18)
    trainer.fit(first, data)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    second, data = build()
    L.seed_everything(5, verbose=False)
    tiny_trainer(tmp_path, 30).fit(second, data, ckpt_path=str(tmp_path / "half.ckpt"), weights_only=False)
    assert second.overestimation.weight == straight.overestimation.weight != first.overestimation.weight
    assert second.overestimation.begun == straight.overestimation.begun == 8


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (
            {"gamma": 0.99},
            r"AdaptivePessimism\.window: expected at least 322 environment steps with model\.gamma 0\.99",
        ),
        ({"critic": partial(GenerativeCritic, members=1)}, r"AdaptivePessimism needs at least 2 critics .*, got 1"),
    ],
)
def test_what_it_cannot_adapt_to_is_refused_in_one_line(options, line) -> None:
    with pytest.raises(UsageError, match=r"model\.overestimation: " + line):
        SobolevActorCritic(2, 2, overestimation=AdaptivePessimism(window=100), **{"gamma": 0.9, **options})


def test_a_run_without_end_has_no_part_to_wait_for(tmp_path: Path) -> None:
    def waiting(seed: int = 0):
        return build(seed, overestimation=AdaptivePessimism(every=4, window=12, after=0.5))

    for module, data in (waiting(), tiny_seeds(waiting)):
        with pytest.raises(UsageError, match=r"AdaptivePessimism\.after: needs the end of the run, trainer\.max_steps"):
            tiny_trainer(tmp_path, -1).fit(module, data)


def test_without_collection_there_is_nothing_to_adapt_to(tmp_path: Path) -> None:
    agent, data = build(gamma=0.999, overestimation=AdaptivePessimism(window=4000))
    with pytest.raises(UsageError, match=r"data\.capacity: AdaptivePessimism needs at least 3218 .*, got 1000"):
        tiny_trainer(tmp_path, 10).fit(agent, data)
    agent, data = build()
    data.collect = False
    with pytest.raises(UsageError, match=r"AdaptivePessimism needs returns of the policy, and data\.collect is false"):
        tiny_trainer(tmp_path, 10).fit(agent, data)
    many, both = tiny_seeds(build)
    both.collect = False
    with pytest.raises(UsageError, match=r"data\.collect is false"):
        tiny_trainer(tmp_path, 10).fit(many, both)
