"""The learning rate as a pure function of the step: nothing to save, nothing to restore."""

from __future__ import annotations

import math

from flexvae_cli.config.settings import ScheduleTable


def rate_factor(step: int, schedule: ScheduleTable, max_steps: int) -> float:
    """The factor on the base rate at `step`, counted from 0.

    Linear warm-up reaches 1 at `warmup_steps`; behind it `constant` stays, `cosine` falls to `final` at `max_steps`,
    `step` multiplies by `gamma` every `step_size` steps.
    """
    if step < schedule.warmup_steps:
        return (step + 1) / schedule.warmup_steps
    after = step - schedule.warmup_steps
    if schedule.name == "cosine":
        progress = min(1.0, after / max(1, max_steps - schedule.warmup_steps))
        return schedule.final + (1 - schedule.final) * 0.5 * (1 + math.cos(math.pi * progress))
    if schedule.name == "step":
        return schedule.gamma ** (after // schedule.step_size)
    return 1.0
