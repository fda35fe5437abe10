"""`--checkpointing auto`: the entries to recompute so that a batch fits, with little computed twice."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from flexvae_cli.config.loading import merged
from flexvae_cli.engine.build import build_vae
from flexvae_cli.engine.forms import blocks_of
from flexvae_cli.engine.memory.dry import by_layer
from flexvae_cli.engine.memory.following import Followed
from flexvae_cli.engine.memory.forecast import Question
from flexvae_cli.plan import Plan


def choose(question: Question) -> tuple[str, ...]:
    """The entries to recompute so that the question's batch fits with its margin; all where even that is too little.

    They are taken by the bytes that each frees for its multiply-adds, and their number is halved in between what fits
    and what does not, by following the step itself.
    """
    ranked = ranking(Followed(with_recomputed(question, ())))
    low, high = -1, len(ranked)  # so many are too few; so many are enough, or all there are
    while high - low > 1:
        middle = (low + high) // 2 if low >= 0 else 0
        trial = Followed(with_recomputed(question, ranked[:middle])).safe(question.batch)
        low, high = (low, middle) if trial.fits(question.memory) else (middle, high)
    return ranked[:high]


def with_recomputed(question: Question, entries: tuple[str, ...]) -> Question:
    """The same question with other entries recomputed."""
    change = {"train": {"activation_checkpointing": list(entries) or "off"}}
    return replace(question, document=merged(question.document, change))


def ranking(followed: Followed) -> tuple[str, ...]:
    """The entries that have parts and keep anything, by the bytes that they keep for a multiply-add."""
    tracker = followed.at(followed.question.batch)
    kept = by_layer(block for block in tracker.blocks if block.kept)
    work = _multiply_adds(followed.plan)
    blocks = blocks_of(build_vae(followed.plan.net, device="meta"))
    gains = {key: kept[key] / max(1, work[key]) for key in blocks if kept.get(key)}
    return tuple(sorted(gains, key=lambda key: -gains[key]))


def _multiply_adds(plan: Plan) -> Counter[str]:
    """Of a sample, by entry."""
    found: Counter[str] = Counter()
    for side, trace in (("encoder", plan.encoder), ("decoder", plan.decoder)):
        for row in trace.rows:
            found[f"{side}.{row.key.partition('.')[0]}"] += row.macs
    return found
