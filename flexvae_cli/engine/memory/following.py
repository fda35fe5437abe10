"""What is asked of a prediction, followed batch by batch: what is held, and what the allocator makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from flexvae_cli.config import Config
from flexvae_cli.config.settings import Settings
from flexvae_cli.engine import rules
from flexvae_cli.engine.build import build_vae
from flexvae_cli.engine.memory.child import Trial
from flexvae_cli.engine.memory.cudnn import cudnn_for
from flexvae_cli.engine.memory.devices import Gpu
from flexvae_cli.engine.memory.dry import Ways, by_category, dry_pass, dry_step
from flexvae_cli.engine.memory.forecast import MARGINS, Question
from flexvae_cli.engine.memory.phases import hardest
from flexvae_cli.engine.memory.replaying import Replay, replay
from flexvae_cli.engine.memory.standin import standing_in
from flexvae_cli.engine.memory.tracker import Tracker
from flexvae_cli.engine.memory.workspace import Libraries
from flexvae_cli.plan import make_plan

HALF = ("bf16", "fp16")
RUNS = 16  # batches that are remembered


class Followed:
    """The step of a question at any batch.

    Args:
        question: what is asked.
    """

    def __init__(self, question: Question) -> None:
        self.question = question
        self.notes = list(question.notes)
        settings = Settings.model_validate(question.document)
        self.plan = make_plan(Config(settings, Path(question.config), question.document))
        self.tf32 = settings.train.precision == "tf32"
        self.cudnn = cudnn_for(question.gpu.name)
        self.ruled = self.cudnn is None
        self.plan = replace(self.plan, settings=self._settled(settings, question.gpu))
        self.precision = self.plan.settings.train.precision
        self.evaluations = 0
        self.at = lru_cache(RUNS)(self._followed)

    @cached_property
    def of_images(self) -> bool:
        """Whether the net can take channels-last."""
        with standing_in():
            return rules.is_of_images(build_vae(self.plan.net, device="meta"))

    @property
    def budget(self) -> int:
        """Bytes to fill when the margin is left free."""
        return int(self.question.memory / (1 + self.margin))

    @property
    def grade(self) -> str:
        """How the numbers are obtained, by the batch that is asked for."""
        tracker = self.at(self.question.batch)
        if tracker.computed:
            return "E"
        return "D" if tracker.apart else "C" if self.ruled else "B"

    @property
    def workspaces(self) -> str:
        """Where the workspaces come from: cuDNN and its version, or the rule."""
        self.at(self.question.batch)
        return "rule" if self.cudnn is None or self.ruled else f"cuDNN {self.cudnn.version}"

    @property
    def margin(self) -> float:
        """The part of a prediction that is left free."""
        return MARGINS[self.grade]

    def _settled(self, settings: Settings, gpu: Gpu) -> Settings:
        """The settings with everything said that depends on the device."""
        train, changes = settings.train, dict[str, Any]()
        precision = train.precision
        note = hardest(self.plan).note if self.question.mode == "train" else ""
        if note:
            self.notes.append(note)
        if precision == "auto":
            precision = "bf16" if gpu.bf16 and self.question.mode == "train" else "fp32"
        if precision == "tf32":
            self.notes.append("tf32 keeps what fp32 keeps; its workspaces are its own")
            precision = "fp32"
        changes["precision"] = precision
        if train.layout == "auto" and precision in HALF and self.of_images:
            changes["layout"] = "channels-last"
        if train.fuse == "auto":
            changes["fuse"] = "off"  # as `auto` is on a GPU, see `rules`; layers are then told of one by one
        if train.compile and self.question.mode == "train":
            changes["compile"] = False
            self.notes.append("train.compile is left out; compiled nets keep less")
            if isinstance(train.compile, str):
                self.notes.append("CUDA graphs hold memory of their own that is not counted; use --probe always")
        if self.question.processes > 1:
            self.notes.append("NCCL's own memory is an allowance, not a prediction")
        return settings.model_copy(update={"train": train.model_copy(update=changes)})

    def _followed(self, batch: int) -> Tracker:
        self.evaluations += 1
        gpu = self.question.gpu
        flash, several = gpu.capability >= (8, 0), self.question.processes
        libraries = Libraries(gpu, self.cudnn, tf32=self.tf32)
        ways = Ways(cuda=True, flash=flash, extras=libraries, processes=several)
        if self.question.mode == "train":
            tracker = dry_step(self.plan, batch, ways)
        else:
            tracker = dry_pass(self.plan, self.question.mode, batch, ways)
        self.ruled |= libraries.ruled
        if self.evaluations == 1:
            for layer in tracker.apart:
                how = "measured apart" if layer in tracker.computed else "followed apart, as on a CPU"
                self.notes.append(f"{layer} cannot run on torch's meta device; it was {how}")
        return tracker

    def parts(self, batch: int) -> dict[str, int]:
        """What is held when most is held, by what it is for."""
        tracker = self.at(batch)
        return by_category(tracker.held_at(tracker.peak.event))

    def replayed(self, batch: int, limit: int | None = None) -> Replay:
        """What the allocator makes of a batch."""
        tracker = self.at(batch)
        return self._replay([block.bytes for block in tracker.blocks], tracker.events, limit)

    def _replay(self, sizes: Sequence[int], events: Sequence[int], limit: int | None = None) -> Replay:
        expandable = self.question.allocator == "expandable"
        return replay(sizes, events, limit, expandable=expandable, split=self.question.split)

    def safe(self, batch: int) -> Trial:
        """What a batch needs, the margin included."""
        return self.safely(batch, *self._held(batch))

    def safely(self, batch: int, sizes: Sequence[int], events: Sequence[int]) -> Trial:
        """The same of storages of these sizes, in this order."""
        return Trial(batch, "done", peak=int(self._replay(sizes, events).reserved * (1 + self.margin)))

    def just(self, batch: int) -> Trial:
        """Whether a batch fits if cached memory is given back; its peak is what no allocator could do without."""
        return self.barely(batch, *self._held(batch))

    def barely(self, batch: int, sizes: Sequence[int], events: Sequence[int]) -> Trial:
        """The same of storages of these sizes, in this order."""
        found = self._replay(sizes, events, self.question.memory)
        return Trial(batch, "done" if found.fits else "memory", peak=found.allocated)

    def _held(self, batch: int) -> tuple[list[int], list[int]]:
        tracker = self.at(batch)
        return [block.bytes for block in tracker.blocks], tracker.events
