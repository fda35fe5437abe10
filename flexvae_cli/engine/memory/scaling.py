"""The largest batch by few steps that are followed: aim by two of them, then look at the answer itself.

Every storage is affine in the batch, or nearly; what holds them together, and the allocator, are not. So the storages
are scaled, one by one, and the allocator is replayed with what comes out: that is quick, and only aimed by.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from flexvae_cli.engine.memory.child import Trial
from flexvae_cli.engine.memory.following import Followed
from flexvae_cli.engine.memory.search import MOST, Found, largest_batch
from flexvae_cli.engine.memory.tracker import Tracker

T = TypeVar("T")
AIMS = 3  # each by the last two batches, for some storages have a bend
STATES = ("parameters", "state", "ema")  # what does not depend on the batch


@dataclass(frozen=True, slots=True)
class Largest:
    """The largest batches.

    Attributes:
        safe: that fits with the margin; 0 where none does.
        too_large: the smallest known not to fit so; None where the search came to its end.
        limit: that fits without a margin, where the allocator gives back what it has cached.
    """

    safe: int
    too_large: int | None
    limit: int


def safest(followed: Followed) -> Found:
    """The largest batch that fits with the margin; it was followed itself."""
    return _with_one_margin(
        followed, lambda: _Aim(followed).search(followed.safe, followed.safely, followed.question.batch)
    )


def largest(followed: Followed) -> Largest:
    """The largest batches of a question; each was followed itself."""
    return _with_one_margin(followed, lambda: _largest(followed))


def _largest(followed: Followed) -> Largest:
    safe = safest(followed)
    limit = _Aim(followed).search(followed.just, followed.barely, max(1, safe.largest))
    return Largest(safe.largest, safe.beyond.batch if safe.beyond else None, limit.largest)


def _with_one_margin(followed: Followed, search: Callable[[], T]) -> T:
    """What a search finds; anew where a batch was left to the rule on the way: the margin is wider from then on."""
    margin = followed.margin
    found = search()
    return found if followed.margin == margin else search()


def _second(followed: Followed) -> int:
    """Another batch to follow, near the one that is looked for: all but the states is taken to grow with the batch."""
    batch, memory = followed.question.batch, followed.budget
    states = sum(size for kind, size in followed.parts(batch).items() if kind in STATES)
    each = max(1, (followed.replayed(batch).reserved - states) / batch)
    second = max(1, min(MOST, int((memory - states) / each)))
    return second if second != batch else batch + 1


class _Aim:
    """The search for a largest batch, from one batch and another near the one that is looked for."""

    def __init__(self, followed: Followed) -> None:
        self.followed, self.first, self.second = followed, followed.question.batch, _second(followed)

    def search(
        self, run: Callable[[int], Trial], judge: Callable[[int, list[int], list[int]], Trial], begin: int
    ) -> Found:
        """The largest batch.

        Args:
            run: follows a batch.
            judge: what is to be said of a batch whose storages, and their order, are guessed.
            begin: the batch to begin with.
        """
        memory, known = self.followed.question.memory, [run(self.second)]
        near, far = self.first, self.second
        for _ in range(AIMS):
            if not _alike(self.followed.at(near), self.followed.at(far)):
                break
            guess = partial(self._guess, judge, near, far)
            aimed = largest_batch(guess, guess(begin), memory)
            known.append(run(max(1, aimed.largest)))
            if known[-1].fits(memory):
                known += [run(aimed.beyond.batch), known[-1]] if aimed.beyond else []
                break
            if known[-1].batch in (near, far):
                break
            near, far = far, known[-1].batch
        return largest_batch(run, run(begin), memory, known=known)

    def _guess(self, judge: Callable[[int, list[int], list[int]], Trial], near: int, far: int, batch: int) -> Trial:
        """What is to be said of a batch by the storages at two others."""
        low, high = self.followed.at(near), self.followed.at(far)
        part = (batch - near) / (far - near)
        pairs = zip(low.blocks, high.blocks, strict=True)
        return judge(batch, [max(1, round(a.bytes + (b.bytes - a.bytes) * part)) for a, b in pairs], low.events)


def _alike(one: Tracker, other: Tracker) -> bool:
    """Whether both took the same storages in the same order; when garbage is freed may differ."""
    return len(one.blocks) == len(other.blocks) and all(
        a.operation == b.operation for a, b in zip(one.blocks, other.blocks, strict=True)
    )
