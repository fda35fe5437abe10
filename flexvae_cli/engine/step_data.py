"""What a step trains on, from the loader to the device, and what keeps a run from it: then all processes know."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise

from torch import Tensor

from flexvae_cli.engine.data.dataset import Fault, MicroBatch
from flexvae_cli.engine.data.loader import nothing, training_batches
from flexvae_cli.engine.data.workers import ShortageError
from flexvae_cli.engine.interrupt import Interrupt
from flexvae_cli.engine.trainer import Trainer
from flexvae_cli.errors import DataError, FlexVAEError, Problem

OUT_OF_DATA = (DataError, ShortageError)
"""Why there are no more samples. It comes up between two steps, so that what was trained up to there is sound."""


@dataclass
class StepData:
    """What a process takes for a step.

    Attributes:
        micro_batches: samples (b, c, *space), on the device.
        bad: files that could not be read.
        error: why there is not all of it, in this process or in another one; then no process takes the step.
    """

    micro_batches: list[Tensor] = field(default_factory=list)
    bad: list[Fault] = field(default_factory=list)
    error: FlexVAEError | None = None


def micro_batches_from(trainer: Trainer, start: int, interrupt: Interrupt) -> Iterator[MicroBatch]:
    """This process's micro-batches from step `start` on; where a phase changes their size, the loader starts anew.

    Raises:
        Stopped: a signal came while the data let this process wait; one of several lets the signal wait.
        DataError, ShortageError: see `training_batches`.
    """
    data, on_gpu = trainer.plan.settings.data, trainer.learner.device.type == "cuda"
    check = interrupt.check if trainer.world.size == 1 else nothing  # one of several does not leave by itself
    phases = trainer.plan.phases
    changes = [b.start for a, b in pairwise(phases) if a.shapes != b.shapes and start < b.start < trainer.max_steps]
    for begin, end in pairwise([start, *changes, trainer.max_steps]):
        images = trainer.source.training_at(trainer.plan.phase_at(begin).shapes)
        sampler = replace(trainer.sampler, start_step=begin, max_steps=end)
        yield from training_batches(
            images,
            sampler,
            workers=data.workers,
            pin_memory=on_gpu,
            timeout=data.timeout,
            check=check,
            tell=trainer.notes.append,
        )


def fetch(data: StepData, trainer: Trainer, step: int, stream: Iterator[MicroBatch]) -> None:
    """Fill in what this process takes for a step; all processes do so together.

    Raises:
        Stopped: a signal came while the data let this process wait.
    """
    error: FlexVAEError | None = None
    try:
        for _ in trainer.sampler.step_sizes(step):
            micro_batch = next(stream)
            data.micro_batches.append(trainer.learner.prepare(micro_batch.x))
            data.bad += micro_batch.bad
    except OUT_OF_DATA as own:
        error = own
    data.error = _of_any(trainer, error)


def _of_any(trainer: Trainer, error: FlexVAEError | None) -> FlexVAEError | None:
    """The error of this process, or else that of the first that has one: the others would wait for it in the step."""
    (failed,) = trainer.world.greatest(error is not None)
    if not failed:
        return None
    said = [[each.what, each.where, each.hint] for each in error.problems] if error else []
    told = trainer.world.from_each([int(error.code) if error else 0, said])
    code, problems = next(each for each in told if each[0])
    kinds = {int(kind.code): kind for kind in OUT_OF_DATA}
    return error or kinds[code](*(Problem(what, where, hint=hint) for what, where, hint in problems))
