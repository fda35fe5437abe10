"""What would help: other choices, each of them followed as the question itself is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

from flexvae_cli.config.loading import merged
from flexvae_cli.engine.memory.following import HALF, Followed
from flexvae_cli.engine.memory.forecast import Change
from flexvae_cli.engine.memory.scaling import safest


@dataclass(frozen=True, slots=True)
class Choice:
    """Another choice: the options that ask for it, keys of `[train]` and `[ema]`, and the allocator, if another one."""

    options: str
    train: dict[str, Any]
    ema: dict[str, Any] | None = None
    expandable: bool = False


def helpful(followed: Followed) -> Iterator[Change]:
    """What every single choice would give, then all of them together, and what lets the step's whole batch fit."""
    choices = list(choices_for(followed))
    for choice in [*choices, *([together(choices)] if len(choices) > 1 else [])]:
        yield _tried(followed, choice)
    split = _accumulated(followed)
    if split is not None:
        yield split


def choices_for(followed: Followed) -> Iterator[Choice]:
    """The choices that are not taken yet and that the net, the GPU and the mode allow for."""
    train, question = followed.plan.settings.train, followed.question
    half = train.precision in HALF
    name = train.precision if half else "bf16" if question.gpu.bf16 else "fp16"
    asked = "" if half else f"--precision {name} "
    if question.allocator == "default" and question.split is None:
        yield Choice("--allocator expandable", {}, expandable=True)
    if question.mode != "train":
        return  # what a trained net is used in does not follow `[train]`
    if not half:
        yield Choice(asked.strip(), {"precision": name})
    if train.norm_dtype == "fp32":
        yield Choice(f"{asked}--norm-dtype input", {"precision": name, "norm_dtype": "input"})
    if train.layout != "channels-last" and half and followed.of_images:
        yield Choice("--channels-last", {"layout": "channels-last"})
    if train.activation_checkpointing == "off":
        yield Choice("--checkpointing blocks", {"activation_checkpointing": "blocks"})
    if followed.plan.settings.ema.decay:
        yield Choice("--no-ema", {}, ema={"decay": 0.0})


def together(choices: list[Choice]) -> Choice:
    """All choices at once; options that two of them ask for are said once."""
    words: dict[str, None] = {}
    train: dict[str, Any] = {}
    for choice in choices:
        words |= dict.fromkeys(f"--{part.strip()}" for part in choice.options.split("--") if part)
        train |= choice.train
    ema = next((choice.ema for choice in choices if choice.ema), None)
    return Choice(" ".join(words), train, ema, any(choice.expandable for choice in choices))


def _tried(followed: Followed, choice: Choice, batch: int | None = None) -> Change:
    question = followed.question
    tables: dict[str, Any] = {"train": choice.train, **({"ema": choice.ema} if choice.ema else {})}
    other = replace(
        question,
        document=merged(question.document, tables),
        allocator="expandable" if choice.expandable else question.allocator,
        batch=batch or question.batch,
    )
    trial = Followed(other)
    return Change(choice.options, safest(trial).largest, trial.replayed(other.batch).reserved)


def _accumulated(followed: Followed) -> Change | None:
    """More micro-batches, where one of them does not fit and a smaller one does."""
    train, question = followed.plan.settings.train, followed.question
    if question.mode != "train":
        return None
    fits, parts = safest(followed).largest, train.accumulate
    each = ceil(train.batch_size / (parts * question.processes))
    while fits and fits < each and parts < train.batch_size:
        parts = max(parts + 1, min(train.batch_size, ceil(train.batch_size / (fits * question.processes))))
        each = ceil(train.batch_size / (parts * question.processes))
        change = _tried(followed, Choice(f"--accumulate {parts}", {"accumulate": parts}), each)
        if change.largest >= each:
            return change
        fits = change.largest
    return None
