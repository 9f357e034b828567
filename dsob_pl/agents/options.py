"""Ranges of the agent's numeric options."""

from __future__ import annotations

import math
from typing import Any

from dsob_pl.errors import UsageError


def check_options(agent: Any) -> None:
    """Raises UsageError, naming the option, where a number of ``agent`` is outside of its range."""
    if not 0 <= agent.gamma < 1:
        raise UsageError(f"model.gamma: expected a number in [0, 1), got {agent.gamma}")
    if not 0 <= agent.tau <= 1:
        raise UsageError(f"model.tau: expected a number in [0, 1], got {agent.tau}")
    for name in ("samples", "target_samples", "policy_delay", "diagnostic_samples"):
        if getattr(agent, name) < 1:
            raise UsageError(f"model.{name}: expected at least 1, got {getattr(agent, name)}")
    for name in ("return_range", "gradient_bound", "max_gradient_norm", "jacobian_bound"):
        bound = getattr(agent, name)
        if bound is not None and not bound > 0:
            raise UsageError(f"model.{name}: expected a positive number, got {bound}")
    for name in ("gradient_weight", "exploration_std", "jacobian_penalty"):
        number = getattr(agent, name)
        if not 0 <= number < math.inf:
            raise UsageError(f"model.{name}: expected a number of at least 0, got {number}")
