"""The work behind `forecast`: follow the step on meta tensors at several batches, and replay the allocator."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, TextIO

from flexvae_cli.engine.memory.changes import helpful
from flexvae_cli.engine.memory.choosing import choose, with_recomputed
from flexvae_cli.engine.memory.devices import Gpu
from flexvae_cli.engine.memory.dry import by_category, by_layer
from flexvae_cli.engine.memory.following import Followed
from flexvae_cli.engine.memory.forecast import Forecast, Layer, Question
from flexvae_cli.engine.memory.resolution import largest_input
from flexvae_cli.engine.memory.scaling import largest
from flexvae_cli.engine.memory.trial import tell
from flexvae_cli.plan import Plan
from flexvae_cli.structure import Item, Leaf


def predict(question: Question) -> Forecast:
    """The answer to a question.

    Raises:
        UsageError: the net cannot be followed without computing.
    """
    chosen = choose(question) if question.choose else None
    if chosen is not None:
        question = with_recomputed(question, chosen)
    followed, memory = Followed(question), question.memory
    tracker, whole = followed.at(question.batch), followed.replayed(question.batch)
    if question.asserted is not None:
        followed.at(question.asserted)  # first, for the margin to be the same for all
    most = largest(followed)
    peak = tracker.peak
    held = tracker.held_at(peak.event)
    codes = codes_of(followed.plan)
    kept = sorted(by_layer(held).items(), key=lambda each: -each[1])
    largest_one, too_large_one = largest_input(followed) if question.resolution else ("", "")
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
        safe=most.safe,
        too_large=most.too_large,
        limit=most.limit,
        one=0 if most.safe else followed.replayed(1).reserved,
        asserted_fits=asserted,
        evaluations=followed.evaluations,
        notes=tuple(followed.notes),
        grade=followed.grade,
        workspaces=followed.workspaces,
        changes=tuple(helpful(followed)) if question.what_if else (),
        recomputed=chosen,
        input=largest_one,
        too_large_input=too_large_one,
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
