"""torch's caching allocator for CUDA, replayed: what it reserves for a given order of takes and frees.

The rules are those of `c10/cuda/CUDACachingAllocator.cpp` for one stream.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from contextlib import suppress
from dataclasses import dataclass

MIB = 2**20
SMALLEST = 512  # bytes; every block is a multiple of it
SMALL = MIB  # blocks up to this size come from the pool of small ones
SMALL_SEGMENT, LARGE_SEGMENT = 2 * MIB, 20 * MIB
LARGE = 10 * MIB  # from this size on a segment is as large as its block, rounded up to
ROUND_LARGE = 2 * MIB


class FullError(Exception):
    """The limit does not allow for what is asked."""


@dataclass(slots=True, eq=False)
class Chunk:
    """A piece of a segment.

    Attributes:
        address: unique, and ordered within a segment.
        state: `used`, `free`, or `unmapped`: an address without memory, in expandable segments alone.
        before, after: the neighbours in the segment.
    """

    address: int
    size: int
    pool: Pool
    state: str = "free"
    before: Chunk | None = None
    after: Chunk | None = None


class Pool:
    """The free chunks of one kind, by size and then address."""

    def __init__(self, small: bool) -> None:
        self.small = small
        self.free: list[tuple[int, int]] = []
        self.chunks: dict[int, Chunk] = {}
        self.tail: Chunk | None = None  # of the expandable segment
        self.unit = SMALL_SEGMENT if small else LARGE_SEGMENT  # that an expandable segment grows by

    def add(self, chunk: Chunk) -> None:
        chunk.state = "free"
        self.chunks[chunk.address] = chunk
        insort(self.free, (chunk.size, chunk.address))

    def remove(self, chunk: Chunk) -> None:
        del self.free[bisect_left(self.free, (chunk.size, chunk.address))]
        del self.chunks[chunk.address]

    def best_fit(self, size: int) -> Chunk | None:
        """The smallest free chunk that is large enough; of several the one at the lowest address."""
        index = bisect_left(self.free, (size, -1))
        return self.chunks[self.free[index][1]] if index < len(self.free) else None


class Allocator:
    """Takes and frees, and knows what is reserved.

    Args:
        limit: bytes that may be reserved; None for any number.
        split: `max_split_size_mb` in bytes: larger chunks are neither cut nor taken for what is smaller.

    Attributes:
        least_rest: bytes of a large chunk that are worth cutting off.
        reserved, allocated: bytes now.
        most_reserved, most_allocated: the most so far.
        retries: how often cached memory had to be given back to go on.
    """

    least_rest = SMALL + 1

    def __init__(self, limit: int | None = None, split: int | None = None) -> None:
        self.limit, self.split = limit, split
        self.reserved = self.allocated = self.most_reserved = self.most_allocated = self.retries = 0
        self._pools = (Pool(small=True), Pool(small=False))
        self._next_address = 0

    def take(self, size: int) -> Chunk:
        """A chunk for so many bytes.

        Raises:
            FullError: there is no room, not even without what is cached.
        """
        size = rounded(size)
        pool = self._pools[size > SMALL]
        chunk = pool.best_fit(size)
        if chunk is not None and self._may_serve(chunk, size):
            pool.remove(chunk)
        else:
            chunk = self._fresh(pool, size)
        self._split(pool, chunk, size)
        chunk.state = "used"
        self.allocated += chunk.size
        self.most_allocated = max(self.most_allocated, self.allocated)
        return chunk

    def _may_serve(self, chunk: Chunk, size: int) -> bool:
        """Whether a chunk that is large enough may be taken: a huge one not for little, nor for much less than it."""
        if self.split is None:
            return True
        return chunk.size < self.split if size < self.split else chunk.size < size + LARGE_SEGMENT

    def _fresh(self, pool: Pool, size: int) -> Chunk:
        """A chunk of fresh memory; where there is none, what is cached is given back."""
        try:
            return self._new(pool, size)
        except FullError:
            self.retries += 1
        if self.split is not None and self._release_huge(pool, size):
            with suppress(FullError):
                return self._new(pool, size)
        self._release()
        return self._new(pool, size)

    def free(self, chunk: Chunk) -> None:
        """Give a chunk back to the cache, joined with its free neighbours."""
        self.allocated -= chunk.size
        self._put(chunk)

    def _put(self, chunk: Chunk) -> Chunk:
        pool = chunk.pool
        for other in (chunk.before, chunk.after):
            if other is not None and other.state == "free":
                pool.remove(other)
                first, second = (other, chunk) if other is chunk.before else (chunk, other)
                chunk = self._joined(first, second)
        pool.add(chunk)
        return chunk

    def _joined(self, first: Chunk, second: Chunk) -> Chunk:
        """Two neighbours as one, which is the first."""
        first.size += second.size
        first.after = second.after
        if second.after is not None:
            second.after.before = first
        if first.pool.tail is second:
            first.pool.tail = first
        return first

    def _split(self, pool: Pool, chunk: Chunk, size: int) -> None:
        """Cut off what is not needed, where that is enough to keep."""
        if not pool.small and self.split is not None and size >= self.split:
            return
        if chunk.size - size >= (SMALLEST if pool.small else self.least_rest):
            pool.add(self._cut(chunk, size))

    def _cut(self, chunk: Chunk, size: int) -> Chunk:
        """Shorten a chunk; returns what was behind."""
        rest = Chunk(chunk.address + size, chunk.size - size, chunk.pool, before=chunk, after=chunk.after)
        if chunk.after is not None:
            chunk.after.before = rest
        if chunk.pool.tail is chunk:
            chunk.pool.tail = rest
        chunk.after, chunk.size = rest, size
        return rest

    def _new(self, pool: Pool, size: int) -> Chunk:
        """A chunk of fresh memory, in no pool yet."""
        size = segment_size(size)
        self._reserve(size)
        chunk = Chunk(self._next_address, size, pool)
        self._next_address += size
        return chunk

    def _reserve(self, size: int) -> None:
        if self.limit is not None and self.reserved + size > self.limit:
            raise FullError
        self.reserved += size
        self.most_reserved = max(self.most_reserved, self.reserved)

    def _release_huge(self, pool: Pool, size: int) -> bool:
        """Give back cached chunks that are never cut, the smallest that is enough or else from the largest down."""
        least = max(size, self.split or 0)
        huge = [pool.chunks[address] for length, address in pool.free if length >= (self.split or 0)]
        enough = next((chunk for chunk in huge if chunk.size >= least), None)
        freed = 0
        for chunk in [enough] if enough is not None else reversed(huge):
            pool.remove(chunk)
            self.reserved -= chunk.size
            freed += chunk.size
            if freed >= least:
                return True
        return False

    def _release(self) -> None:
        """Give back every cached segment that is free as a whole."""
        for pool in self._pools:
            for chunk in list(pool.chunks.values()):
                if chunk.before is None and chunk.after is None:
                    pool.remove(chunk)
                    self.reserved -= chunk.size


def rounded(size: int) -> int:
    """What a block takes."""
    return max(SMALLEST, -(-size // SMALLEST) * SMALLEST)


def segment_size(size: int) -> int:
    """The segment that is reserved for a block of this (rounded) size."""
    if size <= SMALL:
        return SMALL_SEGMENT
    if size < LARGE:
        return LARGE_SEGMENT
    return -(-size // ROUND_LARGE) * ROUND_LARGE
