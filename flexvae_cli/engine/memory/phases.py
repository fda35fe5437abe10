"""The phase of a run that a step is taken of: the one with the largest input."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from flexvae_cli.plan import Plan


@dataclass(frozen=True, slots=True)
class Hardest:
    """The step that most is asked of.

    Attributes:
        step: its number.
        shape: of a training sample, (c, *space).
        note: what there is to say where the input changes in the course of the run, else empty.
    """

    step: int
    shape: tuple[int, ...]
    note: str


def hardest(plan: Plan) -> Hardest:
    """A step with the largest input of all phases, and with a discriminator, where there is one.

    A discriminator that starts behind that phase is taken to be there: that is more than will ever be held, not less.
    """
    begin = plan.adversary.table.start if plan.adversary else 0
    most = max(prod(phase.shape) for phase in plan.phases)
    now = plan.phase_at(begin)
    phase = now if prod(now.shape) == most else next(p for p in plan.phases if prod(p.shape) == most)
    note = ""
    if len({each.shape for each in plan.phases}) > 1:
        name = "the start of the run" if phase is plan.phases[0] else phase.where
        note = f"the input is that of {name}, the largest of all phases: {'x'.join(str(n) for n in phase.shape)}"
    return Hardest(max(begin, phase.start), phase.shape, note)
