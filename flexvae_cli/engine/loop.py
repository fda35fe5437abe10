"""Training, from a plan to events. The position is the step alone: everything else follows from the seed."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch

from flexvae_cli.engine.build import build_vae
from flexvae_cli.engine.checkpoint import Checkpoint, resume_checkpoint
from flexvae_cli.engine.data.dataset import Fault, MicroBatch
from flexvae_cli.engine.data.loader import training_batches
from flexvae_cli.engine.data.sampler import MicroBatches
from flexvae_cli.engine.device import choose_device, keep_freed_memory
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
from flexvae_cli.engine.interrupt import Interrupt
from flexvae_cli.engine.learner import Learner
from flexvae_cli.engine.meter import Meter
from flexvae_cli.engine.modelfiles import find_model, require_same_tensors
from flexvae_cli.engine.precision import set_determinism
from flexvae_cli.engine.preview import preview
from flexvae_cli.engine.randomness import seed_of
from flexvae_cli.engine.resume import changes, require_same_run
from flexvae_cli.engine.rundir import RunDirectory
from flexvae_cli.engine.source import Source, open_source
from flexvae_cli.engine.trainer import Trainer
from flexvae_cli.engine.vae import VAE
from flexvae_cli.errors import UsageError
from flexvae_cli.plan import Plan


@dataclass(frozen=True)
class Materials:
    """What a run needs beside its plan, and what can be refused before anything is written."""

    device: torch.device
    source: Source


def gather(plan: Plan) -> Materials:
    """Find the device and the images.

    Raises:
        UsageError: this machine does not have the device.
        DataError: there are no images that can be used.
    """
    settings = plan.settings
    shapes = [phase.shape for phase in plan.phases]
    return Materials(choose_device(settings.train.device), open_source(settings.data, settings.train.seed, shapes))


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
    with Interrupt() as interrupt:
        if checkpoint is None:
            yield Saved(0, trainer.save(0))  # whatever is wrong with the disk shows now, not after an hour
        last = start
        for event in _steps(trainer, start, interrupt):
            last = event.step if isinstance(event, Advanced) else last
            yield event
        yield Finished(last, time.monotonic() - began, interrupt.signal)


def _prepare(
    plan: Plan, materials: Materials, run: RunDirectory, resume: bool
) -> tuple[Trainer, Checkpoint | None, list[Event]]:
    settings, notices = plan.settings, list[Event]()
    device, source = materials.device, materials.source
    keep_freed_memory(settings.train.allocator)
    set_determinism(settings.train.deterministic, device)
    checkpoint, damaged = resume_checkpoint(run.path) if resume else (None, [])
    notices += [Noticed(f"passed over a damaged checkpoint: {problem}") for problem in damaged]
    if checkpoint is not None:
        require_same_run(plan, checkpoint)
    torch.manual_seed(seed_of(settings.train.seed, "weights"))
    vae = build_vae(plan.net, logits=plan.output == "logits")
    if checkpoint is None and settings.model.init is not None:
        notices.append(_start_from(settings.model.init, vae))
    sampler = _sampler(plan, len(source.training), checkpoint.step if checkpoint else 0)
    if checkpoint is not None and checkpoint.step > sampler.max_steps:
        what = f"the run is at step {checkpoint.step} already, beyond the {sampler.max_steps} that the config asks for"
        raise UsageError(what, where=str(checkpoint.path), hint="raise train.max_steps or train.epochs")
    trainer = Trainer(plan, run, source, Learner(plan, vae.to(device), sampler.max_steps), sampler)
    if checkpoint is not None:
        trainer.restore(checkpoint)
        run.rewind_metrics(checkpoint.state.get("metrics_offset", 0))
        found = changes(plan, checkpoint, source.fingerprint, device)
        notices += [Noticed(f"not bit-identical to an uninterrupted run from here on: {change}") for change in found]
    return trainer, checkpoint, notices


def _sampler(plan: Plan, count: int, start: int) -> MicroBatches:
    train = plan.settings.train
    sampler = MicroBatches(count, train.batch_size, train.accumulate, train.seed, start, train.max_steps or 0)
    if train.epochs is None:
        return sampler
    steps = train.epochs * sampler.steps_per_epoch
    return MicroBatches(count, train.batch_size, train.accumulate, train.seed, start, steps)


def _start_from(path: Path, vae: VAE) -> Event:
    """Load the weights of a trained model of the same structure."""
    found = find_model(path)
    weights = found.weights()
    require_same_tensors(weights, vae.state_dict(), found.path)
    vae.load_state_dict(weights)
    return Noticed(f"starting from the weights of {found.path}")


def _steps(trainer: Trainer, start: int, interrupt: Interrupt) -> Iterator[Event]:
    """All steps from `start` on, with what is due after each."""
    train, learner = trainer.plan.settings.train, trainer.learner
    stream = _stream(trainer, start)
    meter, clock = Meter(), time.monotonic()
    told = {fault.name for fault in trainer.source.bad}
    for step in range(start, trainer.max_steps):
        micro_batches, bad = [], list[Fault]()
        with meter.waiting():
            for _ in trainer.sampler.step_sizes(step):
                micro_batch = next(stream)
                micro_batches.append(learner.prepare(micro_batch.x))
                bad += micro_batch.bad
        yield from _met(bad, told)
        yield from map(Noticed, trainer.told_notes())
        with meter.stepping():
            meter.add(learner.step(step, micro_batches), sum(len(x) for x in micro_batches))
        done = step + 1
        yield Advanced(done)
        last = done == trainer.max_steps
        due = partial(_due, done, last or bool(interrupt.signal))
        if due(train.log_every):
            means = meter.read()
            yield from trainer.look(done)
            yield Logged(done, {**means, "lr": learner.optimization.rate, **learner.numbers()})
        better = False
        if trainer.source.validation and (last or done % train.validate_every == 0) and not interrupt.signal:
            found = trainer.validate(done)
            yield from _met(found.bad, told)
            yield Validated(done, found.values)
            better = trainer.best.saw(done, found.values)
        if train.preview_every and (last or done % train.preview_every == 0) and not interrupt.signal:
            with learner.shown() as vae:
                picture = preview(vae, trainer.source.strip)
            yield Previewed(done, trainer.run.write_preview(f"step-{done:08d}.png", picture))
        late = 0 < train.checkpoint_minutes * 60 <= time.monotonic() - clock
        if due(train.checkpoint_every) or better or late:
            yield from trainer.look(done)
            yield Saved(done, trainer.save(done))
            clock = time.monotonic()
        if interrupt.signal:
            return


def _stream(trainer: Trainer, start: int) -> Iterator[MicroBatch]:
    """The micro-batches from `start` on; where a phase changes the size of the samples, the loader starts anew."""
    data, on_gpu = trainer.plan.settings.data, trainer.learner.device.type == "cuda"
    phases = trainer.plan.phases
    changes = [b.start for a, b in pairwise(phases) if a.shape != b.shape and start < b.start < trainer.max_steps]
    for begin, end in pairwise([start, *changes, trainer.max_steps]):
        images = trainer.source.training_at(trainer.plan.phase_at(begin).shape)
        sampler = replace(trainer.sampler, start_step=begin, max_steps=end)
        yield from training_batches(
            images, sampler, workers=data.workers, pin_memory=on_gpu, timeout=data.timeout, tell=trainer.notes.append
        )


def _met(bad: Iterable[Fault], told: set[str]) -> Iterator[Event]:
    """An event for every bad file that was not told of before."""
    for fault in bad:
        if fault.name not in told:
            told.add(fault.name)
            yield BadFileMet(*fault)


def _due(done: int, always: bool, every: int) -> bool:
    return always or done % every == 0
