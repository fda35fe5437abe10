"""What the allocator makes of a recorded order of takes and frees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flexvae_cli.engine.memory.allocator import Allocator, Chunk, FullError
from flexvae_cli.engine.memory.expandable import ExpandableAllocator


@dataclass(frozen=True, slots=True)
class Replay:
    """What came of a replay.

    Attributes:
        fits: whether it came to its end within the limit.
        reserved, allocated: most bytes.
        retries: how often cached memory had to be given back.
    """

    fits: bool
    reserved: int
    allocated: int
    retries: int


def replay(
    sizes: Sequence[int],
    events: Sequence[int],
    limit: int | None = None,
    *,
    expandable: bool = False,
    split: int | None = None,
) -> Replay:
    """Take and free blocks in a given order.

    Args:
        sizes: of the blocks.
        events: `index` takes a block, `~index` frees it.
        limit: bytes that may be reserved.
        expandable: whether segments grow.
        split: bytes above which a block is never cut, for the plain allocator alone.
    """
    allocator = ExpandableAllocator(limit) if expandable else Allocator(limit, split)
    taken: dict[int, Chunk] = {}
    fits = True
    try:
        for event in events:
            if event >= 0:
                taken[event] = allocator.take(sizes[event])
            else:
                allocator.free(taken.pop(~event))
    except FullError:
        fits = False
    return Replay(fits, allocator.most_reserved, allocator.most_allocated, allocator.retries)
