"""Training, from a plan to events. The position is the step alone: everything else follows from the seed."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from flexvae_cli import __version__
from flexvae_cli.engine.agreement import require_agreement
from flexvae_cli.engine.build import build_vae
from flexvae_cli.engine.checkpoint import Checkpoint, read_checkpoint, resume_checkpoint
from flexvae_cli.engine.data.dataset import Fault, MicroBatch
from flexvae_cli.engine.data.loader import nothing, training_batches
from flexvae_cli.engine.data.sampler import MicroBatches
from flexvae_cli.engine.device import device_at, keep_freed_memory
from flexvae_cli.engine.distributed import World
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
from flexvae_cli.engine.learner import Learner
from flexvae_cli.engine.meter import Meter
from flexvae_cli.engine.modelfiles import find_model, require_same_tensors
from flexvae_cli.engine.patience import waiting_for_room
from flexvae_cli.engine.precision import set_determinism
from flexvae_cli.engine.preview import preview
from flexvae_cli.engine.randomness import seed_of
from flexvae_cli.engine.resume import changes, flat, require_same_run
from flexvae_cli.engine.rundir import RunDirectory
from flexvae_cli.engine.source import Source, open_source
from flexvae_cli.engine.trainer import Trainer
from flexvae_cli.engine.vae import VAE
from flexvae_cli.errors import UsageError
from flexvae_cli.plan import Plan

ECHO = 5.0  # seconds in which a signal may come twice: from the batch system, and sent on by torchrun


@dataclass(frozen=True)
class Materials:
    """What a run needs beside its plan, and what can be refused before anything is written."""

    device: torch.device
    source: Source
    world: World


def gather(plan: Plan, world: World | None = None) -> Materials:
    """Find the device and the images.

    Args:
        plan: what to do.
        world: the processes that do it together; by default this one is alone.

    Raises:
        UsageError: this machine does not have the device, or the processes do not agree on what to do.
        DataError: there are no images that can be used.
    """
    settings, world = plan.settings, world or World()
    device = device_at(settings.train.device, world.place)
    source = open_source(settings.data, settings.train.seed, [phase.shape for phase in plan.phases])
    require_agreement(world, _decisive(plan, source, device))
    return Materials(device, source, world)


def _decisive(plan: Plan, source: Source, device: torch.device) -> dict[str, Any]:
    """What has to be the same in all processes, by the name that a message calls it."""
    held_out = [item.name for item in source.validation.items] if source.validation else []
    return {
        "the version of FlexVAE": __version__,
        "the version of torch": torch.__version__,
        "the kind of device": device.type,
        "the structures": plan.net.describe(),
        "the training images": source.fingerprint,
        "the validation images": seed_of(*held_out),
        **flat(plan.settings.model_dump(mode="json")),
    }


def train(plan: Plan, materials: Materials, run: RunDirectory, *, resume: bool) -> Iterator[Event]:
    """Train by a plan in a run directory that the caller holds.

    Args:
        plan: what to do.
        materials: what `gather` found for it.
        run: where; its newest whole checkpoint is continued where `resume` is set and there is one.
        resume: continue instead of starting.

    Yields:
        Events; the last one is `Finished`. A generator that is closed early leaves the last checkpoint behind.

    Raises:
        FlexVAEError: the data cannot be used, the checkpoint does not fit, the disk is full, the loss is not finite.
    """
    trainer, checkpoint, notices = _prepare(plan, materials, run, resume)
    if trainer.world.first:
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
    )
    yield from notices
    yield from (BadFileMet(*bad) for bad in trainer.source.bad)
    began = time.monotonic()
    with Interrupt(echo=0.0 if trainer.world.size == 1 else ECHO) as interrupt:
        if checkpoint is None and trainer.world.first:
            yield Saved(0, trainer.save(0))  # whatever is wrong with the disk shows now, not after an hour
        last = start
        for event in _steps(trainer, start, interrupt):
            last = event.step if isinstance(event, Advanced) else last
            yield event
        yield Finished(last, time.monotonic() - began, trainer.signal)


def _prepare(
    plan: Plan, materials: Materials, run: RunDirectory, resume: bool
) -> tuple[Trainer, Checkpoint | None, list[Event]]:
    settings, notices = plan.settings, list[Event]()
    device, source, world = materials.device, materials.source, materials.world
    keep_freed_memory(settings.train.allocator)
    set_determinism(settings.train.deterministic, device)
    checkpoint = _checkpoint(run, world, notices) if resume else None
    if checkpoint is not None:
        require_same_run(plan, checkpoint)
    torch.manual_seed(seed_of(settings.train.seed, "weights"))
    vae = build_vae(plan.net, logits=plan.output == "logits")
    if checkpoint is None and settings.model.init is not None:
        notices.append(_start_from(settings.model.init, vae))
    sampler = _sampler(plan, len(source.training), checkpoint.step if checkpoint else 0, world)
    if checkpoint is not None and checkpoint.step > sampler.max_steps:
        what = f"the run is at step {checkpoint.step} already, beyond the {sampler.max_steps} that the config asks for"
        raise UsageError(what, where=str(checkpoint.path), hint="raise train.max_steps or train.epochs")
    trainer = Trainer(plan, run, source, Learner(plan, vae.to(device), sampler.max_steps, world), sampler)
    if checkpoint is not None:
        trainer.restore(checkpoint)
        if world.first:
            run.rewind_metrics(checkpoint.state.get("metrics_offset", 0))
        found = changes(plan, checkpoint, source.fingerprint, device, world.size)
        notices += [Noticed(f"not bit-identical to an uninterrupted run from here on: {change}") for change in found]
    return trainer, checkpoint, notices


def _checkpoint(run: RunDirectory, world: World, notices: list[Event]) -> Checkpoint | None:
    """The newest whole checkpoint: the first process finds it, the others read the same one."""
    checkpoint, damaged = resume_checkpoint(run.path) if world.first else (None, [])
    notices += [Noticed(f"passed over a damaged checkpoint: {problem}") for problem in damaged]
    name = world.from_first(checkpoint.path.name if checkpoint else None)
    return checkpoint if world.first or name is None else read_checkpoint(run.checkpoints / name)


def _sampler(plan: Plan, count: int, start: int, world: World) -> MicroBatches:
    train = plan.settings.train
    steps = train.max_steps or 0
    sampler = MicroBatches(count, train.batch_size, train.accumulate, train.seed, start, steps, world.rank, world.size)
    return replace(sampler, max_steps=train.epochs * sampler.steps_per_epoch) if train.epochs else sampler


def _start_from(path: Path, vae: VAE) -> Event:
    """Load the weights of a trained model of the same structure."""
    found = find_model(path)
    weights = found.weights()
    require_same_tensors(weights, vae.state_dict(), found.path)
    vae.load_state_dict(weights)
    return Noticed(f"starting from the weights of {found.path}")


def _steps(trainer: Trainer, start: int, interrupt: Interrupt) -> Iterator[Event]:
    """All steps from `start` on, with what is due after each.

    Several processes go through this together: what decides where one goes is the same in all of them.
    """
    train, learner, first = trainer.plan.settings.train, trainer.learner, trainer.world.first
    stream = _stream(trainer, start, interrupt)
    meter, clock = Meter(), time.monotonic()
    told = {fault.name for fault in trainer.source.bad}
    if trainer.owes:
        yield from _validated(trainer, start, interrupt, told)
        if trainer.signal:
            return
        if first:
            yield from _saved(trainer, start, interrupt, anew=True)
    for step in range(start, trainer.max_steps):
        micro_batches, bad = [], list[Fault]()
        with meter.waiting():
            try:
                for _ in trainer.sampler.step_sizes(step):
                    micro_batch = next(stream)
                    micro_batches.append(learner.prepare(micro_batch.x))
                    bad += micro_batch.bad
            except Stopped:  # the data let us wait
                yield from _stopped_at(trainer, step, interrupt)
                return
        samples = trainer.sampler.step_samples(step)
        with meter.stepping():
            meter.add(learner.step(step, micro_batches, samples), samples)
        done = step + 1
        yield Advanced(done)
        agreed = trainer.agree(interrupt.signal, 0 < train.checkpoint_minutes * 60 <= time.monotonic() - clock, bad)
        yield from _met(agreed.bad, told)
        yield from map(Noticed, agreed.notes)
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
        if due(train.checkpoint_every) or better or agreed.late:
            yield from trainer.look(done)
            if first:
                yield from _saved(trainer, done, interrupt)
            clock = time.monotonic()
        if trainer.signal:
            return


def _validated(trainer: Trainer, done: int, interrupt: Interrupt, told: set[str]) -> Generator[Event, None, bool]:
    """Validate behind a step; returns whether it is the best one. What a signal prevents is owed to a resumed run."""
    trainer.owes = bool(trainer.signal)
    if trainer.owes:
        return False
    try:
        found = trainer.validate(done, interrupt)
    except Stopped:
        trainer.owes, trainer.signal = True, interrupt.signal
        return False
    yield from _met(found.bad, told)
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


def _stopped_at(trainer: Trainer, done: int, interrupt: Interrupt) -> Iterator[Event]:
    """Leave between two steps."""
    trainer.signal = interrupt.signal
    yield from trainer.look(done)
    yield from _saved(trainer, done, interrupt)


def _stream(trainer: Trainer, start: int, interrupt: Interrupt) -> Iterator[MicroBatch]:
    """The micro-batches from `start` on; where a phase changes the size of the samples, the loader starts anew."""
    data, on_gpu = trainer.plan.settings.data, trainer.learner.device.type == "cuda"
    check = interrupt.check if trainer.world.size == 1 else nothing  # one of several does not leave by itself
    phases = trainer.plan.phases
    changes = [b.start for a, b in pairwise(phases) if a.shape != b.shape and start < b.start < trainer.max_steps]
    for begin, end in pairwise([start, *changes, trainer.max_steps]):
        images = trainer.source.training_at(trainer.plan.phase_at(begin).shape)
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


def _met(bad: Iterable[Fault], told: set[str]) -> Iterator[Event]:
    """An event for every bad file that was not told of before."""
    for fault in bad:
        if fault.name not in told:
            told.add(fault.name)
            yield BadFileMet(*fault)


def _due(done: int, always: bool, every: int) -> bool:
    return always or done % every == 0
