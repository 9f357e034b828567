"""What a loaded agent tells of the return of an action."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from dsob_pl import load_agent
from dsob_pl.agents import SobolevActorCritic, ValueDistribution
from dsob_pl.cli import main
from dsob_pl.critics import GenerativeCritic, QuantileCritic
from dsob_pl.divergences import QuantileHuber
from dsob_pl.errors import UsageError
from dsob_pl.risk import CVaR, Entropic, Mean

CONF = Path(__file__).resolve().parents[2] / "conf"


def agent(**options):
    torch.manual_seed(0)
    one = SobolevActorCritic(3, 2, **options)
    one.normalizer.update(torch.randn(200, 3) * torch.tensor([1.0, 5.0, 0.2]) + 3)
    one.reward_scale.factor.fill_(0.25)
    return one


# Two critics, three samples each, one action component; pooled and sorted returns: 0 1 2 3 4 8
RETURNS = torch.tensor([[4.0, 0.0, 2.0], [1.0, 8.0, 3.0]])
BY_HAND = ValueDistribution(RETURNS, torch.zeros(2, 3, 2), 10 * RETURNS.unsqueeze(-1) + 1)


def test_quantiles_risk_and_disagreement_by_hand():
    law = BY_HAND
    assert law.quantile(0.5).item() == 2
    assert law.quantile([0.0, 0.5, 0.51, 5 / 6, 1.0]).tolist() == [0, 2, 3, 4, 8]
    assert law.quantile(torch.tensor([[0.1], [1.0]])).tolist() == [[0.0], [8.0]]
    assert law.cvar(1 / 3).item() == pytest.approx(0.5)
    assert law.cvar(0.25).item() == pytest.approx((0 + 0.5 * 1) / 1.5)
    assert law.cvar(1 / 3, "upper").item() == pytest.approx(6)
    assert law.risk(Mean()).item() == 3
    # the gradient is 10 Z + 1 for each sample: of a measure homogeneous in Z that of 10 times the value, plus one
    torch.testing.assert_close(law.risk_gradient(CVaR(0.5)), torch.tensor([11.0]))
    # sorted: 0 2 4 and 1 3 8
    assert law.disagreement.item() == pytest.approx((1 + 1 + 4) / 3)
    assert law._replace(returns=RETURNS[:1]).disagreement.item() == 0
    three = law._replace(returns=torch.tensor([[0.0], [1.0], [5.0]]))
    assert three.disagreement.item() == pytest.approx((1 + 5 + 4) / 3)


def test_shapes_of_one_of_many_and_of_a_field_of_actions(float64):
    one = agent()
    s, a = torch.randn(4, 3), torch.rand(4, 2) * 2 - 1
    for shape, observation, action in (
        ((), s[0], a[0]),
        ((4,), s, a),
        ((2, 2), s.unflatten(0, (2, 2)), a.unflatten(0, (2, 2))),
        ((4,), s[0], a),  # one state, a field of actions
        ((4,), s, a[0]),
    ):
        law = one.value_distribution(observation, action, 9)
        assert law.returns.shape == (2, *shape, 9)
        assert law.state_gradients.shape == (2, *shape, 9, 3)
        assert law.action_gradients.shape == (2, *shape, 9, 2)
        assert law.quantile(0.1).shape == law.cvar(0.1).shape == law.disagreement.shape == shape
        assert law.quantile([0.1, 0.2, 0.3]).shape == (*shape, 3)
        assert law.risk_gradient(CVaR(0.3)).shape == (*shape, 2)
    assert one.value_distribution(s, a).returns.shape == (2, 4, 1000)


def test_a_row_is_what_it_is_alone_and_at_every_call(float64):
    one = agent()
    s, a = torch.randn(4, 3), torch.rand(4, 2) * 2 - 1
    state = torch.get_rng_state()
    before = {name: x.clone() for name, x in one.state_dict().items()}
    law = one.value_distribution(s, a, 9)
    for i in range(4):
        for ours, alone in zip(law, one.value_distribution(s[i], a[i], 9)):
            torch.testing.assert_close(ours[:, i], alone)
    again = one.value_distribution(s.numpy(), a.numpy(), 9)  # NumPy arrays as environments give them
    assert all(torch.equal(x, y) for x, y in zip(law, again))
    assert not any(x.requires_grad for x in law)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(x, before[name]) for name, x in one.state_dict().items())


@pytest.mark.parametrize("critic", [GenerativeCritic, QuantileCritic])
def test_gradients_are_those_of_the_samples_and_of_the_risk(critic, float64):
    more = {"divergence": QuantileHuber(), "sobolev": "none"} if critic is QuantileCritic else {}
    one = agent(critic=critic, **more)
    s, a, h = torch.randn(3) * 2 + 3, torch.tensor([0.3, -0.4]), 1e-5
    law = one.value_distribution(s, a, 40)
    for measure in (Mean(), CVaR(0.1), Entropic(0.3)):
        numeric = []
        for i in range(2):
            up, down = (one.value_distribution(s, a + sign * h * torch.eye(2)[i], 40) for sign in (1, -1))
            numeric.append((up.risk(measure) - down.risk(measure)) / (2 * h))
            torch.testing.assert_close(
                law.action_gradients[..., i], (up.returns - down.returns) / (2 * h), rtol=1e-5, atol=1e-7
            )
        torch.testing.assert_close(law.risk_gradient(measure), torch.stack(numeric), rtol=1e-5, atol=1e-7)
    for i in range(3):
        up, down = (one.value_distribution(s + sign * h * torch.eye(3)[i], a, 40) for sign in (1, -1))
        slope = (up.returns - down.returns) / (2 * h)
        torch.testing.assert_close(law.state_gradients[..., i], slope, rtol=1e-5, atol=1e-7)


def test_equal_critics_agree_exactly():
    one = agent()
    s, a = torch.randn(5, 3), torch.zeros(5, 2)
    apart = one.value_distribution(s, a, 50)
    means = apart.returns.mean(-1)
    assert (apart.disagreement >= (means[0] - means[1]).abs() - 1e-5).all()
    assert apart.disagreement.min() > 0
    with torch.no_grad():
        for parameter in one.critic.parameters():
            parameter[1] = parameter[0]
    assert torch.equal(one.value_distribution(s, a, 50).disagreement, torch.zeros(5))


def test_what_cannot_be_had_is_refused_in_one_line():
    one, s, a = agent(), torch.zeros(4, 3), torch.zeros(4, 2)
    plain = agent(critic=lambda s, a: GenerativeCritic(s, a, noise_size=0))
    with pytest.raises(
        UsageError, match=r"^value_distribution: a deterministic critic \(noise_size 0\) has no samples"
    ):
        plain.value_distribution(s, a)
    for arguments, line in (
        ((s[:, :2], a, 5), r"expected observation \[\.\.\., 3\], got \[4, 2\]"),
        ((s, torch.zeros(4, 1), 5), r"expected action \[\.\.\., 2\], got \[4, 1\]"),
        ((s, a[:3], 5), r"leading dimensions do not go together: observation \[4, 3\] and action \[3, 2\]"),
        ((s, a, 0), "expected at least 1 sample, got 0"),
    ):
        with pytest.raises(UsageError, match=f"^value_distribution: {line}$"):
            one.value_distribution(*arguments)
    law = one.value_distribution(s, a, 5)
    for level in (-0.1, 1.1, math.nan):
        with pytest.raises(UsageError, match=r"^quantile: expected levels in \[0, 1\]"):
            law.quantile([0.5, level])
    with pytest.raises(UsageError, match=r"^CVaR\.alpha: expected a number in \(0, 1\], got 0"):
        law.cvar(0)


def test_of_an_agent_that_was_trained_and_loaded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = ("pendulum.yaml", "debug.yaml", "risk/cvar_25.yaml")
    options = ["--trainer.max_steps=30", "--trainer.logger=false", "--trainer.enable_progress_bar=false"]
    assert main(["fit", *(f"--config={CONF / name}" for name in files), *options]) == 0
    loaded = load_agent("checkpoints/last.ckpt")
    assert (loaded.risk.alpha, loaded.policy_samples) == (0.25, 50)
    observation = np.array([1.0, 0.0, 0.3], np.float32)
    action = loaded.act(torch.from_numpy(observation))
    law = loaded.value_distribution(observation, action, 200)
    assert law.returns.shape == (2, 200)
    assert law.quantile(0.0) <= law.cvar(0.25) <= law.returns.mean() <= law.cvar(0.25, "upper") <= law.quantile(1.0)
    again = load_agent("checkpoints/last.ckpt").value_distribution(observation, action, 200)
    assert torch.equal(law.returns, again.returns)
