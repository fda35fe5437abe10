"""Training, from a plan to events. The position is the step alone: everything else follows from the seed."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Iterator
from dataclasses import replace
from functools import partial

from flexvae_cli.engine.data.dataset import Fault
from flexvae_cli.engine.data.tolerance import require_few_bad
from flexvae_cli.engine.events import (
    Advanced,
    BadFileMet,
    Event,
    Finished,
    Logged,
    Noticed,
    Previewed,
    Saved,
    Started,
    Validated,
)
from flexvae_cli.engine.files import DiskFullError
from flexvae_cli.engine.interrupt import Interrupt, Stopped
from flexvae_cli.engine.meter import Meter
from flexvae_cli.engine.patience import waiting_for_room
from flexvae_cli.engine.preview import preview
from flexvae_cli.engine.rundir import RunDirectory
from flexvae_cli.engine.starting import Materials, prepare, require_disk
from flexvae_cli.engine.step_data import OUT_OF_DATA, StepData, fetch, micro_batches_from
from flexvae_cli.engine.trainer import Agreed, Trainer
from flexvae_cli.errors import DataError, FlexVAEError
from flexvae_cli.plan import Plan

ECHO = 5.0  # seconds in which a signal may come twice: from the batch system, and sent on by torchrun


def train(plan: Plan, materials: Materials, run: RunDirectory, *, resume: bool, force: bool = False) -> Iterator[Event]:
    """Train by a plan in a run directory that the caller holds.

    Args:
        plan: what to do.
        materials: what `gather` found for it.
        run: where; its newest whole checkpoint is continued where `resume` is set and there is one.
        resume: continue instead of starting.
        force: start though the disk has less room than the checkpoints will need.

    Yields:
        Events; the last one is `Finished`. A generator that is closed early leaves the last checkpoint behind.

    Raises:
        FlexVAEError: the data cannot be used, the checkpoint does not fit, the disk is full, the loss is not finite.
            Where the data give out in the middle, what was trained by then is saved first.
    """
    trainer, checkpoint, notices = prepare(plan, materials, run, resume)
    if trainer.world.first:
        if not force:
            require_disk(trainer)
        run.write_config(plan.settings.model_dump(mode="json"))  # from here on the directory holds a run
    start = checkpoint.step if checkpoint else 0
    yield Started(
        start,
        trainer.max_steps,
        trainer.sampler.steps_per_epoch,
        str(trainer.learner.device),
        plan.parameters,
        len(trainer.source.training),
        trainer.source.held_out,
        checkpoint is not None,
        run.path,
    )
    yield from notices
    told = set[str]()
    yield from _met(trainer.source.bad, told)
    _require_few_bad(trainer, told)
    began = time.monotonic()
    with Interrupt(echo=0.0 if trainer.world.size == 1 else ECHO) as interrupt:
        if checkpoint is None and trainer.world.first:
            yield Saved(0, trainer.save(0))  # whatever is wrong with the disk shows now, not after an hour
        last = start
        try:
            for event in _steps(trainer, start, interrupt, told):
                last = event.step if isinstance(event, Advanced) else last
                yield event
        except OUT_OF_DATA as error:
            yield from _ended_by(error, trainer, last, interrupt)
        yield Finished(last, time.monotonic() - began, trainer.signal)


def _steps(trainer: Trainer, start: int, interrupt: Interrupt, told: set[str]) -> Iterator[Event]:
    """All steps from `start` on, with what is due after each; `told` are the bad files that events told of.

    Several processes go through this together: what decides where one goes is the same in all of them.
    """
    train, learner, first = trainer.plan.settings.train, trainer.learner, trainer.world.first
    stream = micro_batches_from(trainer, start, interrupt)
    meter, clock = Meter(), time.monotonic()
    if trainer.owes:
        yield from _validated(trainer, start, interrupt, told)
        if trainer.signal:
            return
        if first:
            yield from _saved(trainer, start, interrupt, anew=True)
        _require_few_bad(trainer, told)
    for step in range(start, trainer.max_steps):
        data = StepData()
        with meter.waiting():
            try:
                fetch(data, trainer, step, stream)
            except Stopped:  # the data let us wait
                trainer.signal = interrupt.signal
                yield from _left_at(trainer, step, interrupt)
                return
        if data.error is not None:
            yield from _told(trainer.agree(interrupt.signal, False, data.bad), told)
            raise data.error
        samples = trainer.sampler.step_samples(step)
        with meter.stepping():
            meter.add(learner.step(step, data.micro_batches, samples), samples)
        done = step + 1
        yield Advanced(done)
        late = 0 < train.checkpoint_minutes * 60 <= time.monotonic() - clock
        agreed = trainer.agree(interrupt.signal, late, data.bad)
        yield from _told(agreed, told)
        last = done == trainer.max_steps
        due = partial(_due, done, last or bool(trainer.signal))
        if due(train.log_every):
            means = meter.read()
            yield from trainer.look(done)
            yield Logged(done, {**means, "lr": learner.optimization.rate, **learner.numbers()})
        better = False
        if trainer.source.validation and (last or done % train.validate_every == 0):
            better = yield from _validated(trainer, done, interrupt, told)
        if first and train.preview_every and (last or done % train.preview_every == 0) and not trainer.signal:
            yield from _previewed(trainer, done)
        _require_few_bad(trainer, told)
        if trainer.signal or due(train.checkpoint_every) or better or agreed.late:  # a signal may come in validation
            yield from _left_at(trainer, done, interrupt)
            clock = time.monotonic()
        if trainer.signal:
            return


def _validated(trainer: Trainer, done: int, interrupt: Interrupt, told: set[str]) -> Generator[Event, None, bool]:
    """Validate behind a step; returns whether it is the best one. What does not come to pass is owed to a resumed run.

    Raises:
        DataError: none of the images can be read any more.
    """
    trainer.owes = True
    if trainer.signal:
        return False
    try:
        found = trainer.validate(done, interrupt)
    except Stopped:
        trainer.signal = interrupt.signal
        return False
    yield from _met(found.bad, told)
    if not found.values:
        raise DataError("none of the validation images can be read any more", where="data.validation")
    trainer.owes = False
    yield Validated(done, found.values)
    return trainer.best.saw(done, found.values)


def _previewed(trainer: Trainer, done: int) -> Iterator[Event]:
    """Draw and write a preview; a full disk can do without."""
    with trainer.learner.shown() as vae:
        picture = preview(vae, trainer.source.strip)
    try:
        yield Previewed(done, trainer.run.write_preview(f"step-{done:08d}.png", picture))
    except DiskFullError as full:
        yield Noticed(f"no preview at step {done}: {full.problems[0].what}")


def _saved(trainer: Trainer, done: int, interrupt: Interrupt, *, anew: bool = False) -> Iterator[Event]:
    """Save; a full disk is waited for."""
    wait = trainer.plan.settings.train.disk_full_wait
    path = yield from waiting_for_room(partial(trainer.save, done, anew=anew), wait, stopped=lambda: interrupt.signal)
    yield Saved(done, path)


def _left_at(trainer: Trainer, done: int, interrupt: Interrupt) -> Iterator[Event]:
    """Leave a whole checkpoint between two steps; of several processes the first one does."""
    yield from trainer.look(done)
    if trainer.world.first:
        yield from _saved(trainer, done, interrupt)


def _ended_by(error: FlexVAEError, trainer: Trainer, done: int, interrupt: Interrupt) -> Iterator[Event]:
    """Save what was trained on samples that are there no more, then let the run end.

    Raises:
        FlexVAEError: what ended it, with how to go on, or with what kept the checkpoint from being written.
    """
    *others, last = error.problems
    try:
        yield from _left_at(trainer, done, interrupt)
        trainer.world.greatest(0)  # none leaves before that: torchrun ends the others when one is gone
    except FlexVAEError as another:
        raise type(error)(*error.problems, *another.problems) from error
    saved = f"step {done} is saved, and --resume goes on from there"
    raise type(error)(*others, replace(last, hint=f"{last.hint}; {saved}" if last.hint else saved)) from error


def _told(agreed: Agreed, told: set[str]) -> Iterator[Event]:
    """Events for what the processes have told each other."""
    yield from _met(agreed.bad, told)
    yield from map(Noticed, agreed.notes)


def _met(bad: Iterable[Fault], told: set[str]) -> Iterator[Event]:
    """An event for every bad file that was not told of before."""
    for fault in bad:
        if fault.name not in told:
            told.add(fault.name)
            yield BadFileMet(*fault)


def _require_few_bad(trainer: Trainer, told: set[str]) -> None:
    """Refuse to go on with too many bad files; what belongs to a step is done before, and a run can go on behind it.

    Raises:
        DataError: there are more of them by now than `data.max_bad` puts up with.
    """
    require_few_bad(len(told), trainer.source.files, trainer.plan.settings.data.max_bad, "--set data.max_bad=")


def _due(done: int, always: bool, every: int) -> bool:
    return always or done % every == 0
