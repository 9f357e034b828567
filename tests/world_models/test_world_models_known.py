"""Known dynamics: the environment's own equations in the networks' units."""

from __future__ import annotations

import gymnasium
import pytest
import torch

from dsob_pl.bellman import gamma_kappa
from dsob_pl.envs import LinearQuadratic, Outcome, PointMass, Problem, RewardChain, Rotation, make_env
from dsob_pl.errors import UsageError
from dsob_pl.networks import LinearPolicy, RewardScale, RunningNormalizer
from dsob_pl.world_models import KnownDynamics, Transition

IDS = [f"dsob_pl/{name}-v0" for name in ("LinearQuadratic", "PointMass", "Rotation", "RewardChain")]


def scaled(problem: Problem, clip: float = float("inf")) -> KnownDynamics:
    """A model in units of its own, float64."""
    model = KnownDynamics(problem.observation_size, problem.action_size, problem)
    model.normalizer = RunningNormalizer(problem.observation_size, clip=clip)
    model.normalizer.update(3 + 2 * torch.randn(1000, problem.observation_size))
    model.reward_scale = RewardScale()
    model.reward_scale.factor.fill_(0.25)
    return model.double()


@pytest.mark.parametrize("env_id", IDS)
def test_predictions_are_the_environments_steps(env_id: str) -> None:
    env = make_env(env_id)
    s_size, a_size = env.observation_space.shape[0], env.action_space.shape[0]  # type: ignore[index]
    model = KnownDynamics(s_size, a_size)
    assert model.noise_size == 0
    model.attach(env)
    assert model.noise_size == env.unwrapped.problem.noise_size  # type: ignore[attr-defined]
    model.normalizer.update(torch.randn(100, s_size) * 2 + 1)
    model.reward_scale.factor.fill_(0.25)
    observation, _ = env.reset(seed=0)
    env.action_space.seed(0)
    for _ in range(20):
        action = env.action_space.sample()
        reached, reward, terminated, truncated, info = env.step(action)
        s, a, eps = (torch.from_numpy(x) for x in (observation, action, info["noise"]))
        prediction = model(model.normalizer(s), a, eps)
        torch.testing.assert_close(model.normalizer.inverse(prediction.s_next), torch.from_numpy(reached))
        torch.testing.assert_close(prediction.s_next, model.normalizer(torch.from_numpy(reached)), rtol=0, atol=1e-5)
        assert prediction.r.item() == pytest.approx(0.25 * float(reward), abs=1e-5)
        assert prediction.continuation.item() == 1 - terminated
        observation = reached
        if terminated or truncated:
            break


def test_derivatives_are_in_the_networks_units() -> None:
    problem = LinearQuadratic(B=[[1.0, 0.0], [0.5, 1.0]])
    model = scaled(problem)
    raw = problem.double()
    s, a, eps = (torch.randn(2).double() for _ in range(3))
    ds, da = torch.func.jacrev(lambda s, a: model(s, a, eps).s_next, argnums=(0, 1))(s, a)
    scale = model.normalizer.scale
    torch.testing.assert_close(ds, raw.A * scale / scale.unsqueeze(-1))
    torch.testing.assert_close(da, raw.B / scale.unsqueeze(-1))
    dr = torch.func.grad(lambda a: model(s, a, eps).r)(a)
    torch.testing.assert_close(dr, -0.25 * 2 * raw.R @ a)


def test_a_termination_ends_the_bootstrap() -> None:
    model = KnownDynamics(2, 2, PointMass(draw="end", end_probability=0.5))
    prediction = model(torch.zeros(500, 2), torch.zeros(500, 2), torch.randn(500, 4))
    assert set(prediction.continuation.tolist()) == {0.0, 1.0}
    assert (prediction.r[prediction.continuation == 1] == 0).all()
    assert (prediction.r[prediction.continuation == 0] > 0).all()


@pytest.mark.parametrize("problem", [LinearQuadratic(noise=[0.3, 0.1]), Rotation()], ids=lambda p: type(p).__name__)
def test_inferred_noise_reproduces_a_replayed_transition(problem: Problem) -> None:
    model = scaled(problem)
    s, a, eps = (torch.randn(50, 2).double() for _ in range(3))
    real = model(s, a, eps)
    transition = Transition(s, a, real.r, real.s_next, 1 - real.continuation)
    inferred = model.infer_noise(transition, torch.randn(50, 2).double())
    torch.testing.assert_close(inferred, eps)
    assert not inferred.requires_grad
    # as the target asks for it: one transition for rows [E, B, M] that are differentiated
    once = Transition(*(x.unsqueeze(1) for x in transition))
    rows = [x.unsqueeze(1).expand(2, 50, 4, 2).clone().requires_grad_() for x in (s, a)]
    prediction = model.reproduce(once, *rows, torch.randn(2, 50, 4, 2).double())
    torch.testing.assert_close(prediction.s_next, real.s_next.unsqueeze(1).expand(2, 50, 4, 2))
    torch.testing.assert_close(prediction.r, real.r.unsqueeze(1).expand(2, 50, 4))
    assert all(x.abs().sum() > 0 for x in torch.autograd.grad(prediction.r.sum() + prediction.s_next.sum(), rows))


@pytest.mark.parametrize("problem", [PointMass(), RewardChain()], ids=lambda p: type(p).__name__)
def test_noise_that_a_step_does_not_determine_is_refused(problem: Problem) -> None:
    model = KnownDynamics(problem.observation_size, problem.action_size, problem)
    s, a = torch.zeros(3, problem.observation_size), torch.zeros(3, problem.action_size)
    transition = Transition(s, a, torch.zeros(3), s, torch.zeros(3))
    with pytest.raises(UsageError, match=rf"'replayed'.*{type(problem).__name__} does not"):
        model.infer_noise(transition, torch.zeros(3, model.noise_size))


class NoiseInReward(Problem):
    """Stands still and pays its noise."""

    observation_size = action_size = noise_size = 1

    def forward(self, s: torch.Tensor, a: torch.Tensor, eps: torch.Tensor) -> Outcome:
        return Outcome(s + a, eps[..., 0], torch.zeros_like(eps[..., 0]))

    def infer_noise(self, s: torch.Tensor, a: torch.Tensor, r: torch.Tensor, s_next: torch.Tensor) -> torch.Tensor:
        return r.unsqueeze(-1)


def test_inference_sees_rewards_in_the_problems_units() -> None:
    model = scaled(NoiseInReward())
    s, a, eps = (torch.randn(5, 1).double() for _ in range(3))
    real = model(s, a, eps)
    torch.testing.assert_close(real.r, 0.25 * eps[:, 0])
    transition = Transition(s, a, real.r, real.s_next, 1 - real.continuation)
    torch.testing.assert_close(model.infer_noise(transition, eps), eps)


def test_nothing_is_learned_and_nothing_of_the_problem_is_saved() -> None:
    env = make_env("dsob_pl/PointMass-v0")
    model = KnownDynamics(2, 2)
    empty = model.state_dict()
    model.attach(env)
    assert not model.learns
    assert not list(model.parameters())
    assert model.state_dict().keys() == empty.keys()
    KnownDynamics(2, 2).load_state_dict(model.state_dict())
    with pytest.raises(UsageError, match="nothing to fit"):
        model.configure_optimizers()


def test_the_model_has_its_own_copy() -> None:
    env = make_env("dsob_pl/PointMass-v0")
    problem = env.unwrapped.problem  # type: ignore[attr-defined]
    model = KnownDynamics(2, 2)
    model.attach(env)
    assert model.problem is not problem
    assert torch.equal(model.problem.centres, problem.centres)  # type: ignore[union-attr]
    model.double().to("meta")
    assert problem.centres.dtype == torch.float32
    assert problem.centres.device.type == "cpu"
    # attached after a move, the copy follows the model
    model = KnownDynamics(2, 2).double()
    model.attach(env)
    assert model.problem.centres.dtype == torch.float64  # type: ignore[union-attr]


def test_a_problem_that_was_given_is_kept_and_one_that_was_taken_is_not() -> None:
    given = KnownDynamics(2, 2, Rotation(rho=0.3))
    given.attach(make_env("dsob_pl/Rotation-v0"))
    assert given.problem.rho == 0.3  # type: ignore[union-attr]
    given.attach(make_env("Pendulum-v1"))
    taken = KnownDynamics(2, 2)
    for rho in (0.5, 0.6):
        taken.attach(make_env("dsob_pl/Rotation-v0", env_kwargs={"rho": rho}))
        assert taken.problem.rho == rho  # type: ignore[union-attr]


def test_environments_without_a_problem_and_problems_of_other_sizes() -> None:
    with pytest.raises(UsageError, match=r"dsob_pl/PointMass-v0.*'Pendulum-v1' has none"):
        KnownDynamics(3, 1).attach(make_env("Pendulum-v1"))
    with pytest.raises(UsageError, match="has no problem"):
        KnownDynamics(2, 2)(torch.zeros(2), torch.zeros(2), torch.zeros(0))
    zero = torch.zeros(2)
    with pytest.raises(UsageError, match="has no problem"):
        KnownDynamics(2, 2).infer_noise(Transition(zero, zero, zero[0], zero, zero[0]), torch.zeros(0))
    with pytest.raises(UsageError, match="observation_size 3; PointMass has 2"):
        KnownDynamics(3, 2, PointMass())
    with pytest.raises(UsageError, match="action_size 2; RewardChain has 3"):
        KnownDynamics(1, 2).attach(gymnasium.make("dsob_pl/RewardChain-v0", action_size=3))


@pytest.mark.parametrize("problem", [PointMass(), Rotation(), LinearQuadratic(), RewardChain()])
def test_gamma_kappa_can_be_measured_on_it(problem: Problem) -> None:
    model = KnownDynamics(problem.observation_size, problem.action_size, problem)
    s, a = torch.randn(5, problem.observation_size), torch.randn(5, problem.action_size)
    policy = LinearPolicy(problem.observation_size, problem.action_size)
    factors = gamma_kappa(model, policy, s, a, torch.randn(5, problem.noise_size), 0.9)
    assert factors.shape == (5,)
    if isinstance(problem, Rotation):
        torch.testing.assert_close(factors, torch.full((5,), 0.9 * (0.9**2 + 0.5**2) ** 0.5))


def test_a_clipped_normaliser_clips_the_prediction() -> None:
    model = scaled(LinearQuadratic(noise=0.0), clip=1.0)
    prediction = model(torch.full((2,), 0.9).double(), torch.full((2,), 50.0).double(), torch.zeros(2).double())
    assert prediction.s_next.tolist() == [1.0, 1.0]
