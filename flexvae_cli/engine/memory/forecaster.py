"""The program behind `forecast`: follow the step on meta tensors at several batches, and replay the allocator."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any, TextIO

from flexvae_cli.config import Config
from flexvae_cli.config.settings import Settings
from flexvae_cli.engine.memory.child import Trial
from flexvae_cli.engine.memory.devices import Gpu
from flexvae_cli.engine.memory.dry import Ways, by_category, by_layer, dry_pass, dry_step
from flexvae_cli.engine.memory.forecast import MARGIN, Forecast, Layer, Question
from flexvae_cli.engine.memory.replaying import Replay, replay
from flexvae_cli.engine.memory.search import largest_batch
from flexvae_cli.engine.memory.tracker import Tracker
from flexvae_cli.engine.memory.trial import main, tell
from flexvae_cli.engine.memory.workspace import Libraries
from flexvae_cli.plan import Plan, make_plan
from flexvae_cli.structure import Item, Leaf

RUNS = 16  # batches that are remembered


class Followed:
    """The step of a question at any batch.

    Args:
        question: what is asked.
    """

    def __init__(self, question: Question) -> None:
        self.question = question
        self.notes: list[str] = []
        settings = self._settled(Settings.model_validate(question.document), question.gpu)
        document = settings.model_dump(mode="json", exclude_none=True)
        self.plan = make_plan(Config(settings, Path(question.config), document))
        self.precision = settings.train.precision
        self.evaluations = 0
        self.at = lru_cache(RUNS)(self._followed)

    def _settled(self, settings: Settings, gpu: Gpu) -> Settings:
        """The settings with everything said that depends on the device."""
        train, changes = settings.train, dict[str, Any]()
        precision = train.precision
        if precision == "auto":
            precision = "bf16" if gpu.bf16 and self.question.mode == "train" else "fp32"
        if precision == "tf32":
            self.notes.append("tf32 takes the memory of fp32")
            precision = "fp32"
        changes["precision"] = precision
        if train.layout == "auto" and precision in ("bf16", "fp16") and len(settings.data.input) == 3:
            changes["layout"] = "channels-last"
        if train.compile:
            changes["compile"] = False
            self.notes.append("train.compile is left out; compiled nets keep less")
        return settings.model_copy(update={"train": train.model_copy(update=changes)})

    def _followed(self, batch: int) -> Tracker:
        self.evaluations += 1
        gpu = self.question.gpu
        ways = Ways(cuda=True, flash=gpu.capability >= (8, 0), extras=Libraries(gpu))
        if self.question.mode == "train":
            return dry_step(self.plan, batch, ways)
        return dry_pass(self.plan, self.question.mode, batch, ways)

    def replayed(self, batch: int, limit: int | None = None) -> Replay:
        """What the allocator makes of a batch."""
        tracker = self.at(batch)
        sizes = [block.bytes for block in tracker.blocks]
        return replay(sizes, tracker.events, limit, expandable=self.question.allocator == "expandable")

    def safe(self, batch: int) -> Trial:
        """What a batch needs, the margin included."""
        return Trial(batch, "done", peak=int(self.replayed(batch).reserved * (1 + MARGIN)))

    def just(self, batch: int) -> Trial:
        """Whether a batch fits if cached memory is given back; its peak is what no allocator could do without."""
        found = self.replayed(batch, self.question.memory)
        return Trial(batch, "done" if found.fits else "memory", peak=found.allocated)


def predict(question: Question) -> Forecast:
    """The answer to a question.

    Raises:
        UsageError: the net cannot be followed without computing.
    """
    followed, memory = Followed(question), question.memory
    tracker, whole = followed.at(question.batch), followed.replayed(question.batch)
    safe = largest_batch(followed.safe, followed.safe(question.batch), memory)
    limit = largest_batch(followed.just, followed.just(max(1, safe.largest)), memory)
    peak = tracker.peak
    held = tracker.held_at(peak.event)
    codes = codes_of(followed.plan)
    kept = sorted(by_layer(held).items(), key=lambda each: -each[1])
    asserted = None if question.asserted is None else followed.safe(question.asserted).fits(memory)
    return Forecast(
        batch=question.batch,
        precision=followed.precision,
        tensors=peak.bytes,
        allocated=whole.allocated,
        reserved=whole.reserved,
        parts=by_category(held),
        layers=tuple(Layer(key or "loss", codes.get(key, ""), size) for key, size in kept),
        stage=peak.stage,
        layer=peak.layer,
        operation=peak.operation,
        safe=safe.largest,
        too_large=safe.beyond.batch if safe.beyond else None,
        limit=limit.largest,
        one=0 if safe.largest else followed.replayed(1).reserved,
        asserted_fits=asserted,
        evaluations=followed.evaluations,
        notes=tuple(followed.notes),
    )


def codes_of(plan: Plan) -> dict[str, str]:
    """The code of every entry that a tracker knows."""
    structures = {"encoder": plan.net.encoder, "decoder": plan.net.decoder}
    if plan.adversary is not None:
        structures["discriminator"] = plan.adversary.structure
    sides = {f"{side}.{key}": code for side, s in structures.items() for key, code in _codes(s.expanded())}
    return {**sides, "bottleneck": str(plan.net.bottleneck.code)}


def _codes(items: tuple[Item, ...]) -> Iterator[tuple[str, str]]:
    for item in items:
        yield item.key, str(item.bound.code) if isinstance(item, Leaf) else "residual"


def answer(request: dict[str, Any], facts: TextIO) -> None:
    """Answer a `forecast.Question`."""
    gpu = request.pop("gpu")
    question = Question(**request, gpu=Gpu(**{**gpu, "capability": tuple(gpu["capability"])}))
    tell(facts, **asdict(predict(question)))


if __name__ == "__main__":
    main(answer)
