"""What a run needs before its first step: device, images, the net, and what a checkpoint gives back."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from flexvae_cli import __version__
from flexvae_cli.config.settings import OptimizerTable
from flexvae_cli.engine.agreement import require_agreement
from flexvae_cli.engine.build import build_vae
from flexvae_cli.engine.checkpoint import Checkpoint, read_checkpoint, resume_checkpoint
from flexvae_cli.engine.data.dataset import TrainingImages
from flexvae_cli.engine.data.sampler import MicroBatches
from flexvae_cli.engine.device import device_at, settle
from flexvae_cli.engine.distributed import World
from flexvae_cli.engine.events import (
    Event,
    Noticed,
)
from flexvae_cli.engine.learner import Learner
from flexvae_cli.engine.modelfiles import find_model, require_same_tensors
from flexvae_cli.engine.precision import set_determinism
from flexvae_cli.engine.randomness import seed_of
from flexvae_cli.engine.resume import changes, flat, require_same_run
from flexvae_cli.engine.room import checkpoint_bytes, moments, require_room
from flexvae_cli.engine.rundir import RunDirectory, step_directories
from flexvae_cli.engine.source import Source, open_source
from flexvae_cli.engine.strangers import require_as_traced
from flexvae_cli.engine.trainer import Trainer
from flexvae_cli.engine.vae import VAE
from flexvae_cli.errors import UsageError
from flexvae_cli.plan import Plan


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
        UsageError: this machine does not have the device, its allocator is set up to leak, or the processes do not
            agree on what to do.
        DataError: there are no images that can be used.
    """
    settings, world = plan.settings, world or World()
    settle(settings.train.allocator)
    device = device_at(settings.train.device, world.place)
    source = open_source(settings.data, settings.train.seed, [phase.shapes for phase in plan.phases])
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


def prepare(
    plan: Plan, materials: Materials, run: RunDirectory, resume: bool
) -> tuple[Trainer, Checkpoint | None, list[Event]]:
    """Build what is trained, and go back to the newest whole checkpoint where `resume` is set.

    Returns:
        The trainer, the checkpoint that it goes on from, and what is to be told.
    """
    settings, notices = plan.settings, list[Event]()
    device, source, world = materials.device, materials.source, materials.world
    set_determinism(settings.train.deterministic, device)
    checkpoint = _checkpoint(run, world, notices) if resume else None
    if checkpoint is not None:
        require_same_run(plan, checkpoint)
    require_as_traced((*plan.encoder.rows, *plan.bottleneck.rows, *plan.decoder.rows))
    torch.manual_seed(seed_of(settings.train.seed, "weights"))
    vae = build_vae(plan.net, logits=plan.output == "logits")
    if checkpoint is None and settings.model.init is not None:
        notices.append(_start_from(settings.model.init, vae))
    sampler = sampler_of(plan, source.training, checkpoint.step if checkpoint else 0, world)
    if checkpoint is not None and checkpoint.step > sampler.max_steps:
        what = f"the run is at step {checkpoint.step} already, beyond the {sampler.max_steps} that the config asks for"
        raise UsageError(what, where=str(checkpoint.path), hint="raise train.max_steps or train.epochs")
    late = [phase for phase in plan.phases if phase.start >= sampler.max_steps]
    if late:
        what = f"starts at step {late[0].start}, behind the {sampler.max_steps} steps of the run"
        raise UsageError(what, where=f"{late[0].where}.start")
    trainer = Trainer(plan, run, source, Learner(plan, vae.to(device), sampler.max_steps, world), sampler)
    if checkpoint is not None:
        trainer.restore(checkpoint)
        if world.first:
            run.rewind_metrics(checkpoint.state.get("metrics_offset", 0))
        found = changes(plan, checkpoint, source.fingerprint, device, world.size)
        notices += [Noticed(f"not bit-identical to an uninterrupted run from here on: {change}") for change in found]
    return trainer, checkpoint, notices


def require_disk(trainer: Trainer) -> None:
    """Refuse to begin what the disk cannot hold."""
    settings, learner = trainer.plan.settings, trainer.learner
    train, adversarial = settings.train, settings.adversarial
    size = _checkpoint_bytes(learner.vae, settings.optimizer, mean=bool(settings.ema.decay))
    if learner.adversary is not None and adversarial is not None:
        size += _checkpoint_bytes(learner.adversary.module, adversarial.optimizer)
    keep = train.keep_last + (train.keep_best != "off")
    require_room(trainer.run.path, size, keep=keep, there=len(step_directories(trainer.run.checkpoints)))


def _checkpoint_bytes(net: nn.Module, table: OptimizerTable, *, mean: bool = False) -> int:
    """Of all that some phase may train."""
    weights = sum(tensor.nbytes for tensor in net.state_dict().values())
    trained = sum(parameter.nbytes for parameter in net.parameters())
    return checkpoint_bytes(weights, trained, kept=moments(table.name, table.momentum), mean=mean)


def _checkpoint(run: RunDirectory, world: World, notices: list[Event]) -> Checkpoint | None:
    """The newest whole checkpoint: the first process finds it, the others read the same one."""
    checkpoint, damaged = resume_checkpoint(run.path) if world.first else (None, [])
    notices += [Noticed(f"passed over a damaged checkpoint: {problem}") for problem in damaged]
    name = world.from_first(checkpoint.path.name if checkpoint else None)
    return checkpoint if world.first or name is None else read_checkpoint(run.checkpoints / name)


def sampler_of(plan: Plan, images: TrainingImages, start: int, world: World) -> MicroBatches:
    """Which samples this process trains on in the steps from `start` to the end of the run."""
    train = plan.settings.train
    parts, steps = (train.batch_size, train.accumulate), (start, train.max_steps or 0)
    processes, buckets = (world.rank, world.size), tuple(images.buckets)
    sampler = MicroBatches(len(images), *parts, train.seed, *steps, *processes, buckets)
    return replace(sampler, max_steps=train.epochs * sampler.steps_per_epoch) if train.epochs else sampler


def _start_from(path: Path, vae: VAE) -> Event:
    """Load the weights of a trained model of the same structure."""
    found = find_model(path)
    weights = found.weights()
    require_same_tensors(weights, vae.state_dict(), found.path)
    vae.load_state_dict(weights)
    return Noticed(f"starting from the weights of {found.path}")
