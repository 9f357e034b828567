"""What people's environments hold: it goes on exactly, or is refused by name; it is never saved in part."""

from __future__ import annotations

import random
from array import array
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium
import mujoco
import numpy as np
import pytest
import torch
from gymnasium.envs.classic_control import PendulumEnv
from test_envs_state import play, through_a_file
from torch import nn

from dsob_pl.envs import CannotSave, environment_state, restore_environment
from dsob_pl.envs.state import put_back, saved_environment

BALL = "<mujoco><worldbody><body><freejoint/><geom size='.1'/></body></worldbody></mujoco>"
ACTIONS = np.random.default_rng(0).uniform(-2, 2, (60, 1)).astype(np.float32)


class Simulation:
    def __init__(self) -> None:
        self.model = mujoco.MjModel.from_xml_string(BALL)
        self.data = mujoco.MjData(self.model)


class Falling(PendulumEnv):
    """A pendulum that is paid by a simulation of its own: held under another name, or in an object."""

    def __init__(self, held: bool) -> None:
        super().__init__()
        if held:
            self.simulation = Simulation()
            self.parts = lambda: (self.simulation.model, self.simulation.data)
        else:
            self.mj_model = mujoco.MjModel.from_xml_string(BALL)
            self.mj_data = mujoco.MjData(self.mj_model)
            self.parts = lambda: (self.mj_model, self.mj_data)

    def step(self, action: Any) -> Any:
        model, data = self.parts()
        data.qvel[3] += float(action[0])
        mujoco.mj_step(model, data)
        observation, _, *rest = super().step(action)
        return observation, float(data.qpos.sum()), *rest


class Beside(PendulumEnv):
    """Has something by the name that wrappers have for the environment below."""

    def __init__(self) -> None:
        super().__init__()
        self.env = Held(0)

    def step(self, action: Any) -> Any:
        self.env.value += 1
        observation, reward, *rest = super().step(action)
        return observation, reward + self.env.value, *rest


@dataclass(frozen=True)
class Settings:
    gain: float = 1.0


EASY, HARD = Settings(), Settings(2.0)  # of all environments


class Held:
    def __init__(self, value: Any) -> None:
        self.value = value


class Learned(nn.Module):
    """A simulator that was learned, with a counter and a buffer that state_dict leaves out."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        nn.init.ones_(self.layer.weight)
        self.register_buffer("seen", torch.zeros(1), persistent=False)
        self.calls = 0

    def forward(self, x: float) -> float:
        self.calls += 1
        self.seen += 1
        with torch.no_grad():
            self.layer.weight += 1
        return x + self.calls + self.seen.item() + self.layer.weight.item()


class Changing(PendulumEnv):
    """Paid by what it holds, which each step changes."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what
        self.frozen, self.window, self.learned = Held(EASY), slice(0, 1), Learned()

    def step(self, action: Any) -> Any:
        observation, reward, *rest = super().step(action)
        if self.what == "frozen":
            reward += self.frozen.value.gain
            self.frozen.value = HARD if self.frozen.value.gain == 1.0 else Settings(self.frozen.value.gain + 1)
        elif self.what == "slice":
            reward += self.window.stop
            self.window = slice(0, self.window.stop + 1)
        else:
            reward += self.learned(1.0)
        return observation, reward, *rest


@pytest.mark.parametrize(
    "made",
    [
        lambda: Falling(held=False),
        lambda: Falling(held=True),
        Beside,
        lambda: Changing("frozen"),
        lambda: Changing("slice"),
        lambda: Changing("module"),
    ],
    ids=["mujoco by another name", "mujoco in an object", "env", "frozen dataclass", "slice", "module"],
)
def test_it_goes_on_exactly(made: Callable[[], gymnasium.Env]) -> None:
    env, other = made(), made()
    env.reset(seed=1)
    other.reset(seed=2)
    play(env, ACTIONS[:9])
    play(other, ACTIONS[30:35])
    restore_environment(other, through_a_file(environment_state(env)))
    assert play(other, ACTIONS[9:]) == play(env, ACTIONS[9:])
    assert (EASY.gain, HARD.gain) == (1.0, 2.0)  # what is frozen is replaced, not changed


def test_a_module_of_other_sizes_is_not_put_back() -> None:
    env, other = Holds(nn.Linear(1, 2)), Holds(nn.Linear(2, 2))  # the one would fit into the other, broadcast
    env.reset(seed=0)
    with pytest.raises(CannotSave, match="another Linear in the place of a saved one"):
        restore_environment(other, environment_state(env))


class Holds(PendulumEnv):
    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value


class Numbers(array):
    pass


class Named(dict):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name


def chain(length: int) -> Held:
    first = Held(None)
    for _ in range(length):
        first = Held(first)
    return first


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "another environment": (lambda: gymnasium.make("Pendulum-v1"), r"Holds\.value is another environment"),
    "several of them": (lambda: [PendulumEnv()], r"Holds\.value\[0\] is another environment"),
    "random.Random": (lambda: random.Random(0), r"Holds\.value is a random\.Random"),
    "its subclass": (lambda: type("Dice", (random.Random,), {})(0), r"Holds\.value is a .*Dice"),
    "array.array": (lambda: Numbers("d", [1.0]), r"Holds\.value is a .*Numbers"),
    "defaultdict": (lambda: defaultdict(int), r"Holds\.value is a collections\.defaultdict"),
    "OrderedDict": (lambda: OrderedDict(a=1), r"Holds\.value is a collections\.OrderedDict"),
    "Counter": (lambda: Counter("ab"), r"Holds\.value is a collections\.Counter"),
    "a dict of one's own": (lambda: Named("a"), r"Holds\.value is a .*Named"),
    "masked array": (lambda: np.ma.masked_array([1.0, 2.0], [True, False]), r"Holds\.value is a numpy.*MaskedArray"),
    "parameter": (lambda: nn.Parameter(torch.ones(1)), r"Holds\.value is a torch.*Parameter"),
    "byte order": (lambda: np.arange(3, dtype=">f4"), r"Holds\.value is an array of >f4"),
    "a long chain": (lambda: chain(3000), r"too deep"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_it_is_refused_by_name(kind: str) -> None:
    value, message = REFUSED[kind]
    env = Holds(value())
    env.reset(seed=0)
    with pytest.raises(CannotSave, match=message):
        environment_state(env)
    assert saved_environment(env) is None


def test_vectors_of_pygame_are_no_drawing() -> None:
    pygame = pytest.importorskip("pygame")
    for value in (pygame.Vector2(1, 2), pygame.Rect(0, 0, 2, 2)):
        with pytest.raises(CannotSave, match=r"Holds\.value is a pygame"):
            environment_state(Holds(value))
    environment_state(Holds(pygame.Surface((2, 2))))


class Prickly(PendulumEnv):
    """Raises whatever it likes when it is asked for its state, or given one."""

    def state_dict(self) -> dict[str, Any]:
        raise OSError("not now")

    def load_state_dict(self, _: dict[str, Any]) -> None:
        raise KeyError("speed")


def test_what_an_environment_raises_costs_an_episode_and_not_the_run(caplog: pytest.LogCaptureFixture) -> None:
    assert saved_environment(Prickly()) is None
    assert "Prickly cannot be saved in mid-episode (not now)" in caplog.text
    state = {"layers": [{"__kind__": "own", "state": {"__kind__": "dict", "value": []}}], "names": ["Prickly"]}
    assert put_back(Prickly(), state) is False
    assert "Prickly cannot be put back in mid-episode ('speed')" in caplog.text
