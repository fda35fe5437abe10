"""A run while it goes on: what it holds, what it looks at between steps, and what it writes."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flexvae_cli import __version__
from flexvae_cli.engine.checkpoint import TRAINING, Checkpoint, save_checkpoint
from flexvae_cli.engine.data.dataset import Fault
from flexvae_cli.engine.data.loader import evaluation_batches
from flexvae_cli.engine.data.sampler import MicroBatches
from flexvae_cli.engine.distributed import World
from flexvae_cli.engine.events import Event, Noticed, Skipped
from flexvae_cli.engine.files import DiskFullError, writing
from flexvae_cli.engine.interrupt import Interrupt
from flexvae_cli.engine.learner import Learner
from flexvae_cli.engine.modelfiles import require_same_tensors
from flexvae_cli.engine.nonfinite import write_report
from flexvae_cli.engine.parts import Part, collected, restore_parts
from flexvae_cli.engine.resume import run_state
from flexvae_cli.engine.rundir import RunDirectory
from flexvae_cli.engine.source import Source
from flexvae_cli.engine.validation import Validation, latent_statistics, validate
from flexvae_cli.errors import DivergedError
from flexvae_cli.plan import Plan


class Best:
    """The step of the best validation so far, and what was measured there.

    Args:
        metric: `psnr`, `ssim` or `loss`; `off` finds none.
    """

    def __init__(self, metric: str) -> None:
        self.metric = metric
        self.sign = -1 if metric == "loss" else 1
        self.value, self.step = -self.sign * math.inf, -1

    def saw(self, step: int, values: dict[str, float]) -> bool:
        """Whether a validation is the best so far; a number that is none is never the best."""
        value = values.get(self.metric, math.nan)
        if not self.sign * value > self.sign * self.value:
            return False
        self.value, self.step = value, step
        return True

    def tensors(self) -> dict[str, Tensor]:
        if self.step < 0:
            return {}
        return {"value": torch.tensor(self.value, dtype=torch.float64), "step": torch.tensor(self.step)}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        if not tensors:
            return
        if tensors.keys() != {"value", "step"}:
            raise ValueError("it is of another kind")
        self.value, self.step = tensors["value"].item(), int(tensors["step"])


@dataclass(frozen=True)
class Agreed:
    """What all processes know of a step once they have asked each other.

    Attributes:
        late: whether the clock asks for a checkpoint.
        bad: files that could not be read.
        notes: what is to be told.
    """

    late: bool
    bad: list[Fault]
    notes: list[str]


@dataclass
class Trainer:
    """Everything that a run holds."""

    plan: Plan
    run: RunDirectory
    source: Source
    learner: Learner
    sampler: MicroBatches
    best: Best = field(init=False)
    notes: list[str] = field(default_factory=list)  # to be told with the next event
    signal: int = 0  # the one that stops the run
    owes: bool = False  # the validation behind the step of the checkpoint, which was prevented

    def __post_init__(self) -> None:
        self.best = Best(self.plan.settings.train.keep_best)

    @property
    def max_steps(self) -> int:
        return self.sampler.max_steps

    @property
    def world(self) -> World:
        """The processes that train together."""
        return self.learner.world

    @property
    def _parts(self) -> dict[str, Part]:
        return {"best": self.best}

    def restore(self, checkpoint: Checkpoint) -> None:
        """Put weights and all that training keeps beside them back.

        Raises:
            ModelError: they do not fit.
        """
        weights = checkpoint.weights()
        require_same_tensors(weights, self.learner.vae.state_dict(), checkpoint.path)
        self.learner.vae.load_state_dict(weights)
        self.owes = bool(checkpoint.state.get("validation_owed"))
        restore_parts({**self.learner.parts(), **self._parts}, checkpoint.training(), checkpoint.path / TRAINING)

    def validate(self, done: int, interrupt: Interrupt) -> Validation:
        """Measure the model on the images that are held out, and let the schedule see the loss.

        Raises:
            Stopped: a signal came; one of several processes lets it wait.
        """
        assert self.source.validation is not None
        train = self.plan.settings.train
        size = -(-train.batch_size // (train.accumulate * self.world.size))
        images = evaluation_batches(self.source.validation, size, self.world.rank, self.world.size)
        if self.world.size == 1:
            images = interrupt.until(images)
        with self.learner.shown() as vae:
            found = validate(vae, self.learner.loss_at(done - 1), done - 1, images, self.world)
        if found.values:
            self.learner.plateau.saw(found.values["loss"])
        return found

    def agree(self, signal: int, late: bool, bad: list[Fault]) -> Agreed:
        """What all processes know behind a step, from what each of them does.

        Args:
            signal: the number of one that came to this process, or 0; one that came to any stops all.
            late: whether this process's clock asks for a checkpoint.
            bad: files that this process could not read.
        """
        self.signal, any_late, any_told = self.world.greatest(signal, late, bool(bad or self.notes))
        each = self.world.from_each([bad, self.notes]) if any_told else []
        files = [Fault(*fault) for faults, _ in each for fault in faults]
        notes = [note for _, notes in each for note in notes]
        self.notes.clear()
        return Agreed(bool(any_late), files, notes)

    def look(self, done: int) -> Iterator[Event]:
        """Tell of the updates that were skipped since the last look; the device is waited for.

        Raises:
            DivergedError: there were too many.
        """
        for step in self.learner.health.skipped_since():
            if self.world.first:
                try:
                    yield Skipped(step + 1, write_report(self.run.path, step, self.sampler, self.source))
                except DiskFullError as full:
                    yield Noticed(f"the update of step {step + 1} was skipped; no report: {full.problems[0].what}")
        self.learner.health.check(done)

    def save(self, step: int, *, anew: bool = False) -> Path:
        """Publish a checkpoint of the state after `step` steps; of several processes the first one does.

        Args:
            step: the steps taken.
            anew: whether to replace one of the same step that is whole.

        Raises:
            DivergedError: the model has numbers that are not finite; nothing is written.
        """
        weights, training = self.learner.weights(), self.learner.tensors() | collected(self._parts)
        model = self.describe()
        wrong = [name for name, value in weights.items() if not bool(torch.isfinite(value).all())]
        wrong += ["the latents"] * (not all(map(math.isfinite, chain(*model["latents"].values()))))
        if wrong:
            hint = "the last checkpoint is sound; try a smaller optimizer.lr or optimizer.clip_norm"
            raise DivergedError(f"training diverged: at step {step} not finite: {wrong[0]}", hint=hint)
        offset = self.run.metrics_offset()
        state = run_state(self.plan, self.source.fingerprint, self.learner.device, offset, self.world.size)
        if self.owes:
            state["validation_owed"] = True
        path = save_checkpoint(
            self.run.path,
            step,
            weights=weights,
            model=model,
            training=training,
            state=state,
            keep_last=self.plan.settings.train.keep_last,
            keep=(self.best.step,),
            anew=anew,
        )
        if self.best.step == step:
            _link(self.run.path / "best", path)
        return path

    def describe(self) -> dict[str, Any]:
        """`model.json`: all that using the model takes."""
        data = self.plan.settings.data
        with self.learner.shown() as vae:
            statistics = latent_statistics(vae, self.source.strip)
        return {
            "flexvae": __version__,
            **self.plan.net.describe(),
            "output": self.plan.output,
            "preprocessing": {
                "background": data.background,
                "exif": data.exif,
                "max_pixels": data.max_pixels,
                "draft": data.draft,
                **self.source.reader,
            },
            "latents": statistics,
            **self.learner.describe(),
        }


def _link(link: Path, target: Path) -> None:
    """Let a link point to a directory beside or below its own, in one move."""
    temporary = link.with_name(f".tmp-{os.getpid()}-{link.name}")
    with writing(link):
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(target.relative_to(link.parent), target_is_directory=True)
        temporary.replace(link)
