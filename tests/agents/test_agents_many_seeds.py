"""Many seeds at once: each is the agent that it would be alone, whatever becomes of the others."""

from __future__ import annotations

import inspect
import json
from functools import cache, partial
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from dsob_pl.agents import ManySeeds
from dsob_pl.agents.elementwise import check_elementwise
from dsob_pl.agents.objectives import PARTS, compiled
from dsob_pl.bellman import NoCorrection
from dsob_pl.cli.loading import model_factory
from dsob_pl.cli.parts import find_part
from dsob_pl.errors import UsageError
from dsob_pl.world_models import Transition

CONF = Path(__file__).resolve().parents[2] / "conf"
OVERLAYS = sorted(CONF.glob("method/*.yaml"))
SIZES = {"observation_size": 3, "action_size": 2}
SMALL = {
    "critic": {"hidden": [12, 12]},
    "policy": {"hidden": [12]},
    "world_model": {"hidden": [12], "prior_hidden": [8], "termination_hidden": [8]},
}
RISKS = [OmegaConf.to_container(OmegaConf.load(p).model.init_args.risk) for p in sorted(CONF.glob("risk/*.yaml"))]
B = 8


def model_config(overlay, **options):
    arguments = OmegaConf.to_container(OmegaConf.load(CONF / "walker.yaml").model.init_args)
    arguments |= {"samples": 4, "tau": 0.05}
    arguments["critic_optimizer"]["init_args"]["lr"] = 0.001
    if overlay is not None:  # whole parts: another class brings its own arguments
        arguments |= OmegaConf.to_container(OmegaConf.load(overlay).model.init_args)
    for part, sizes in SMALL.items():
        if arguments[part] is not None:
            taken = inspect.signature(find_part(arguments[part]["class_path"], part)).parameters
            own = arguments[part].setdefault("init_args", {})
            own |= {name: size for name, size in sizes.items() if name in taken}
    return {"class_path": "dsob_pl.agents.SobolevActorCritic", "init_args": arguments | options}


@cache
def factory(config):
    return model_factory(json.loads(config), SIZES)


def build(seed, config):
    """An agent as a run of that seed has it after its warm-up, and the state of torch's generator."""
    build_one = factory(json.dumps(config))
    torch.manual_seed(seed)
    agent = build_one()
    state = torch.get_rng_state()
    agent.reward_scale.low.fill_(-1.0 - seed), agent.reward_scale.high.fill_(2.0)
    agent.normalizer.update(torch.randn(50, 3, generator=torch.Generator().manual_seed(seed)) * (1 + seed))
    return agent, state


def alone(seed, config):
    agent, state = build(seed, config)
    agent.generator = torch.Generator().manual_seed(0)
    agent.generator.set_state(state)
    optimizers = agent.configure_optimizers()[0]
    agent.optimizers = lambda use_pl_optimizer=True: optimizers
    return agent


def together(seeds, config):
    agents, states = zip(*(build(seed, config) for seed in seeds))
    many = ManySeeds(agents, seeds, states)
    for agent, state in zip(many.agents, states):
        agent.generator = torch.Generator().manual_seed(0)
        agent.generator.set_state(state)
    optimizers = many.configure_optimizers()[0]
    many.optimizers = lambda use_pl_optimizer=True: optimizers
    return many


def rows(seed, update):
    """What the replay of ``seed`` brings to an update."""
    draw = partial(torch.randn, generator=torch.Generator().manual_seed(1000 * seed + update))
    ended = (draw(B) > 1).to(torch.get_default_dtype())
    return Transition(draw(B, 3), draw(B, 2).tanh(), draw(B), draw(B, 3), ended)


def stacked(seeds, update):
    return Transition(*(torch.stack(x) for x in zip(*(rows(seed, update) for seed in seeds))))


def parameters(agent):
    return torch.cat([p.detach().flatten() for p in agent.parameters()])


@pytest.mark.parametrize("overlay", [None, *OVERLAYS], ids=lambda p: "walker" if p is None else p.stem)
def test_each_seed_is_the_run_it_would_be_alone(overlay, float64):
    # Against the second: the first lends its modules to the vmapped call and would be right more easily.
    seeds, config = [3, 0], model_config(overlay)
    many, single = together(seeds, config), alone(0, config)
    start = parameters(single)
    for update in range(60):
        report = update % 20 == 19
        metrics = many._update(stacked(seeds, update), report)
        own = single._update(rows(0, update), report)
        if report:
            assert metrics.keys() == own.keys()
            for name, value in own.items():
                torch.testing.assert_close(metrics[name][1], value, rtol=1e-8, atol=1e-9, msg=name)
    # Most agree in the fourteenth digit; a direction that is searched for ends in the tenth.
    torch.testing.assert_close(parameters(many.agents[1]), parameters(single), rtol=1e-8, atol=1e-9)
    assert (parameters(single) - start).abs().max() > 0.01  # and it did move


@pytest.mark.parametrize(
    "options",
    [
        {"jacobian_penalty": 3.0, "jacobian_bound": 0.2, "diagnostic_samples": 4},
        {"target_source": "replayed", "gradient_bound": None},
        {"world_model": None, "sobolev": "none", "target_source": "replayed"},
        {"policy_optimizer": None, "policy": {"class_path": "dsob_pl.networks.LinearPolicy"}},
        {"max_gradient_norm": 1e-3},
        {"gradient_rms_limit": 1e-3},
        *({"risk": risk, "policy_samples": 7} for risk in RISKS),
    ],
    ids=lambda options: options["risk"]["class_path"] if "risk" in options else next(iter(options)),
)
def test_so_with_other_options(options, float64):
    seeds, config = [1, 2], model_config(CONF / "method/mmd_sobolev_state_action.yaml", **options)
    many, singles = together(seeds, config), [alone(seed, config) for seed in seeds]
    for update in range(20):
        metrics = many._update(stacked(seeds, update), True)
        for i, (seed, single) in enumerate(zip(seeds, singles)):
            for name, value in single._update(rows(seed, update), True).items():
                torch.testing.assert_close(metrics[name][i], value, rtol=1e-7, atol=1e-9, msg=name)
    for agent, single in zip(many.agents, singles):
        torch.testing.assert_close(parameters(agent), parameters(single), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda p: p.stem)
def test_nothing_is_reduced_over_the_seeds(overlay):
    seeds, config = [0, 1, 2], model_config(overlay, max_gradient_norm=0.1)
    ends, told = {}, {}
    for factor in (1.0, 1e15, torch.nan):
        many = together(seeds, config)
        for update in range(6):
            transition = stacked(seeds, update)
            transition = transition._replace(r=transition.r * torch.tensor([[1.0], [factor], [1.0]]))
            told[factor] = many._update(transition, True)
        ends[factor] = [parameters(agent) for agent in many.agents]
    for extreme in (1e15, torch.nan):
        for i in (0, 2):
            assert torch.equal(ends[1.0][i], ends[extreme][i])
        assert not torch.equal(ends[1.0][1], ends[extreme][1])
        for name, values in told[1.0].items():
            assert torch.equal(values[[0, 2]], told[extreme][name][[0, 2]]), name


def test_gradients_are_clipped_for_each_seed(float64):
    seeds, config = [0, 1], model_config(None, max_gradient_norm=0.5)
    many = together(seeds, config)
    metrics = many._update(stacked(seeds, 0), False)
    gradient = many.stack.get_parameter("critic").grad
    assert (metrics["critic/grad_norm"] > 0.5).all()
    torch.testing.assert_close(gradient.norm(dim=1), torch.full((2,), 0.5), rtol=1e-5, atol=0)


def test_a_seed_that_leaves_does_not_move_the_others(float64):
    seeds, config = [0, 1, 2], model_config(CONF / "method/mmd_sobolev.yaml")
    many = together(seeds, config)
    rest = [alone(seed, config) for seed in (0, 2)]
    for update in range(20):
        if update == 7:
            many.stack.select([0, 2], many.optimizers())
            many.seeds = seeds = [0, 2]
        many._update(stacked(seeds, update), False)
        for seed, single in zip((0, 2), rest):
            single._update(rows(seed, update), False)
    for agent, single in zip(many.agents, rest, strict=True):
        torch.testing.assert_close(parameters(agent), parameters(single), rtol=1e-8, atol=1e-10)
    assert len(many.stack) == 2
    assert all(p.shape[0] == 2 for p in many.parameters())
    assert all(b.shape[0] == 2 for b in many.buffers())


def test_every_agent_is_a_view_of_the_stack():
    many = together([0, 1], model_config(None))
    many._update(stacked([0, 1], 0), False)
    for i, agent in enumerate(many.agents):
        for part in ("critic", "policy", "world_model", "target_critic", "target_policy"):
            row = torch.cat([p.flatten() for p in getattr(agent, part).parameters()])
            assert torch.equal(row, many.stack.get_parameter(part)[i])
        agent.reward_scale.low.fill_(-77.0 - i)
    assert torch.equal(many.stack.get_buffer("buffer_scales-reward_scale-low"), torch.tensor([-77.0, -78.0]))
    observations = torch.randn(2, 5, 3)
    each = torch.stack([agent.act(o) for agent, o in zip(many.agents, observations)])
    torch.testing.assert_close(many.act(observations), each)


def test_the_state_of_the_stack_goes_back_into_it():
    config = model_config(None)
    many, other = together([0, 1], config), together([4, 5], config)
    many._update(stacked([0, 1], 0), False)
    other.load_state_dict(many.state_dict())
    for a, b in zip(many.agents, other.agents):
        assert torch.equal(parameters(a), parameters(b))
        assert all(torch.equal(x, y) for x, y in zip(a.buffers(), b.buffers()))


def test_a_seeds_own_checkpoint_is_that_of_a_run_alone(float64):
    seeds, config = [3, 0], model_config(CONF / "method/mmd.yaml")
    many, singles = together(seeds, config), [alone(seed, config) for seed in seeds]
    for update in range(4):
        many._update(stacked(seeds, update), False)
        for seed, single in zip(seeds, singles):
            single._update(rows(seed, update), False)
    whole = {
        "state_dict": many.state_dict(),
        "optimizer_states": [o.state_dict() for o in many.optimizers()],
        "epoch": 0,
    }
    many.on_save_checkpoint(whole)
    for seed, single in zip(seeds, singles):
        own = many.seed_checkpoint(seed, whole)
        assert own["epoch"] == 0
        assert own["dsob_updates"] == 4
        assert own["state_dict"].keys() == single.state_dict().keys()
        assert all(t.untyped_storage().nbytes() == t.nbytes for t in own["state_dict"].values())  # not the whole stack
        for optimizer, state in zip(single.optimizers(), own["optimizer_states"], strict=True):
            before = optimizer.state_dict()
            assert before["param_groups"] == state["param_groups"]
            assert before["state"].keys() == state["state"].keys()
            for index, entries in before["state"].items():
                for name, value in entries.items():
                    torch.testing.assert_close(state["state"][index][name], value, rtol=1e-6, atol=1e-10)
        fresh, _ = build(9, config)
        fresh.load_state_dict(own["state_dict"])
        torch.testing.assert_close(parameters(fresh), parameters(single), rtol=1e-8, atol=1e-10)


def test_an_update_never_waits_for_the_device():
    """On tensors without numbers nothing can be read back: no ``item``, no branch on a value."""
    sgd = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1, "fused": False}}  # fused refuses such tensors
    plain = {f"{part}_optimizer": sgd for part in PARTS}
    averse = CONF / "method/mmd.yaml", {"risk": RISKS[0], "policy_samples": 7}
    for overlay, options in [*((overlay, {}) for overlay in OVERLAYS), averse]:
        many = together([0, 1], model_config(overlay, **plain, **options)).to("meta")
        for agent in many.agents:
            agent.generator = None
        many.stack.stack_buffers()  # as a fit does, after Lightning has moved the stack
        assert all(x.is_meta for x in (*many.stack.buffers(), *many.agents[1].buffers()))
        optimizers = many.configure_optimizers()[0]
        many.optimizers = lambda use_pl_optimizer=True, optimizers=optimizers: optimizers
        for update in range(2):
            transition = Transition(*(x.to("meta") for x in stacked([0, 1], update)))
            metrics = many._update(transition, report=update == 1)
        assert metrics["critic/loss"].is_meta
        assert metrics["critic/loss"].shape == (2,)


def test_compiled_losses_are_the_same(monkeypatch):
    compile = torch.compile
    # Traced and differentiated ahead of time, without the minutes of a C++ compiler.
    monkeypatch.setattr(torch, "compile", lambda f, **options: compile(f, backend="aot_eager", **options))
    overlay = CONF / "method/mmd_sobolev_state_action.yaml"
    options = {"risk": RISKS[0], "policy_samples": 7, "overestimation": {"class_path": "dsob_pl.bellman.LowerMean"}}
    config, fused = model_config(overlay, **options), model_config(overlay, **options, compile=True)
    many, quick, single, other = together([0, 1], config), together([0, 1], fused), alone(0, config), alone(0, fused)
    for update in range(3):
        if update == 2:  # a schedule may end the correction: what is compiled must notice
            for agent in (*many.agents, *quick.agents, single, other):
                agent.overestimation = NoCorrection()
        for agents in (many, quick):
            agents._update(stacked([0, 1], update), False)
        for agent in (single, other):
            agent._update(rows(0, update), False)
    torch.testing.assert_close(parameters(quick.agents[1]), parameters(many.agents[1]))
    torch.testing.assert_close(parameters(other), parameters(single))


def test_what_cannot_be_compiled_is_bad_input_and_not_a_run_that_failed():
    def broken(x):
        torch._dynamo.graph_break()
        return x + 1

    with pytest.raises(UsageError, match=r"^model\.compile: torch\.compile failed \(Unsupported: .*\); use false$"):
        compiled(broken)(torch.zeros(1))


@pytest.mark.parametrize("name", ["Adam", "AdamW", "SGD", "RMSprop", "NAdam", "Adagrad"])
def test_optimizers_that_treat_every_number_by_itself_are_taken(name):
    check_elementwise(lambda p: getattr(torch.optim, name)(p, lr=0.1), "model.critic_optimizer")


@pytest.mark.parametrize("name", ["LBFGS", "Adafactor", "Muon"])
def test_optimizers_that_mix_them_are_refused(name):
    if not hasattr(torch.optim, name):
        pytest.skip(f"this torch has no {name}")
    with pytest.raises(UsageError, match=r"model\.critic_optimizer: with many seeds"):
        check_elementwise(lambda p: getattr(torch.optim, name)(p, lr=0.1), "model.critic_optimizer")
