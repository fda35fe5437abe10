"""The learning rate: a pure function of the step, but for the plateau, which remembers validations."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flexvae_cli.config.settings import ScheduleTable


def rate_factor(step: int, schedule: ScheduleTable, max_steps: int) -> float:
    """The factor on the base rate at `step`, counted from 0.

    Linear warm-up reaches 1 at `warmup_steps`; behind it `constant` and `plateau` stay, `cosine` falls to `final` at
    `max_steps`, `step` multiplies by `gamma` every `step_size` steps. `one-cycle` rises from `initial` to 1 at `peak`
    of all steps and falls to `final`, both as half a cosine (arXiv:1708.07120).
    """
    if schedule.name == "one-cycle":
        top = schedule.peak * max_steps
        if step < top:
            return _half_cosine(schedule.initial, 1.0, step / top)
        return _half_cosine(1.0, schedule.final, (step - top) / max(1.0, max_steps - top))
    if step < schedule.warmup_steps:
        return (step + 1) / schedule.warmup_steps
    after = step - schedule.warmup_steps
    if schedule.name == "cosine":
        return _half_cosine(1.0, schedule.final, after / max(1, max_steps - schedule.warmup_steps))
    if schedule.name == "step":
        return schedule.gamma ** (after // schedule.step_size)
    return 1.0


def _half_cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


class Plateau:
    """The factor of the `plateau` schedule: multiplied by `gamma` after `patience` validations without a lower loss."""

    def __init__(self, schedule: ScheduleTable) -> None:
        self.schedule = schedule
        self.factor, self.best, self.waited = 1.0, math.inf, 0

    def saw(self, loss: float) -> None:
        """Take in the loss of a validation; one that is not finite is no lower loss."""
        if self.schedule.name != "plateau":
            return
        margin = self.schedule.threshold * abs(self.best) if math.isfinite(self.best) else 0.0
        if loss < self.best - margin:  # a loss may be negative
            self.best, self.waited = loss, 0
            return
        self.waited += 1
        if self.waited > self.schedule.patience:
            self.factor, self.waited = self.factor * self.schedule.gamma, 0

    def tensors(self) -> dict[str, Tensor]:
        if self.schedule.name != "plateau":
            return {}
        return {"state": torch.tensor([self.factor, self.best, self.waited], dtype=torch.float64)}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        if "state" in tensors:
            factor, best, waited = tensors["state"].tolist()
            self.factor, self.best, self.waited = factor, best, int(waited)
