"""What all noise wrappers share: a scale, and a generator that only the seeds of ``reset`` decide."""

from __future__ import annotations

import math
import numbers
from typing import Any, ClassVar, NoReturn

import gymnasium
import numpy as np
from gymnasium.utils import RecordConstructorArgs

from dsob_pl.errors import UsageError


class Noise(gymnasium.Wrapper, RecordConstructorArgs):
    """A wrapper that draws noise from a generator of its own; the environment's generator is left alone.

    ``reset(seed=s)`` seeds it with ``SeedSequence([s, tag, number of wrappers of the same class below])``; a reset
    without a seed goes on with the stream, as the environment does. Arguments are recorded, so ``env.spec`` can be
    pickled and made again.

    Args:
        env: any environment that the kind of noise can act on.
        scale: at least 0; what it is in units of is said by the subclass. 0 changes nothing.

    Raises:
        UsageError: the scale is not such a number, or the noise cannot act on the environment.
    """

    tag: ClassVar[int]
    scale: float
    generator: np.random.Generator

    def __init__(self, env: gymnasium.Env, scale: float) -> None:
        RecordConstructorArgs.__init__(self, scale=scale)
        gymnasium.Wrapper.__init__(self, env)
        if isinstance(scale, bool) or not isinstance(scale, numbers.Real) or not 0.0 <= float(scale) < math.inf:
            self.refuse(f"scale: expected a finite number of at least 0, got {scale!r}")
        self.scale = float(scale)
        self._below: int = sum(type(wrapper) is type(self) for wrapper in _wrappers(env))
        self.generator = np.random.default_rng()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Resets the environment, and the noise where a seed is given."""
        result = self.env.reset(seed=seed, options=options)
        if seed is not None:
            self.generator = np.random.default_rng(np.random.SeedSequence([seed, self.tag, self._below]))
        return result

    def __str__(self) -> str:
        return f"<{type(self).__name__}(scale={self.scale}){self.env}>"

    def refuse(self, reason: str) -> NoReturn:
        """Raises UsageError with ``reason`` behind the name of the class."""
        raise UsageError(f"{type(self).__name__}: {reason}")


def _wrappers(env: gymnasium.Env) -> list[gymnasium.Wrapper]:
    found = []
    while isinstance(env, gymnasium.Wrapper):
        found.append(env)
        env = env.env
    return found
