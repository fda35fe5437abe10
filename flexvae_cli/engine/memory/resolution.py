"""The largest input that fits at a batch: the same search, over sizes that the net gives back as it takes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from flexvae_cli.api.trace import text
from flexvae_cli.config.loading import merged
from flexvae_cli.engine.memory.child import Trial
from flexvae_cli.engine.memory.following import Followed
from flexvae_cli.engine.memory.forecast import Question
from flexvae_cli.engine.memory.search import largest_batch
from flexvae_cli.net import Net

LARGEST = 8192  # pixels along an axis; no larger input is looked at


def largest_input(followed: Followed) -> tuple[str, str]:
    """The largest input that fits with the margin at the question's batch, and the smallest known not to.

    All axes are as long as one another. Either is empty: where none fits, and where the search came to its end.
    """
    net, question = followed.plan.net, followed.question
    sizes = sizes_of(net)

    def run(number: int) -> Trial:
        other = Followed(_with_input(question, net, sizes[number - 1]))
        return replace(other.safe(question.batch), batch=number)

    first = next((number for number, size in enumerate(sizes, 1) if size >= max(net.shape[1:])), len(sizes))
    found = largest_batch(run, run(first), question.memory, most=len(sizes))
    names = [text(_shape(net, size)) for size in sizes]
    beyond = names[found.beyond.batch - 1] if found.beyond else ""
    return names[found.largest - 1] if found.largest else "", beyond


def sizes_of(net: Net) -> Sequence[int]:
    """The sizes that every axis can have, by the distance between the first two."""
    axes = len(net.shape) - 1
    least = max(net.fitting((1,) * axes))
    step = max(net.fitting((least + 1,) * axes)) - least
    return range(least, LARGEST + 1, step)


def _shape(net: Net, size: int) -> tuple[int, ...]:
    return (net.shape[0], *(size for _ in net.shape[1:]))


def _with_input(question: Question, net: Net, size: int) -> Question:
    return replace(question, document=merged(question.document, {"data": {"input": text(_shape(net, size))}}))
