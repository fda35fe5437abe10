"""The phase of a run that a step is taken of, the one with the largest input, and the bucket of it."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from flexvae_cli.api.trace import text
from flexvae_cli.phases import Phase
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
    """A step with the largest input of all phases and buckets, and with a discriminator, where there is one.

    Of buckets that are as large the one of the longest edges counts: what is padded there takes a little more.
    A discriminator that starts behind that phase is taken to be there: that is more than will ever be held, not less.
    """
    begin = plan.adversary.table.start if plan.adversary else 0
    most = max(_pixels(phase) for phase in plan.phases)
    now = plan.phase_at(begin)
    phase = now if _pixels(now) == most else next(p for p in plan.phases if _pixels(p) == most)
    shape = max(phase.shapes, key=lambda each: (prod(each), sum(each)))
    note = ""
    if len({each.shape for each in plan.phases}) > 1:
        name = "the start of the run" if phase is plan.phases[0] else phase.where
        note = f"the input is that of {name}, the largest of all phases: {text(shape)}"
    elif len(phase.shapes) > 1:
        note = f"the input is the largest of {len(phase.shapes)} buckets: {text(shape)}"
    return Hardest(max(begin, phase.start), shape, note)


def _pixels(phase: Phase) -> int:
    return max(map(prod, phase.shapes))
