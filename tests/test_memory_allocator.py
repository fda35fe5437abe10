"""torch's caching allocator as a replay: its rules by hand, and what must hold whatever happens."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flexvae_cli.engine.memory.allocator import MIB, Allocator, FullError, rounded, segment_size
from flexvae_cli.engine.memory.expandable import ExpandableAllocator
from flexvae_cli.engine.memory.replaying import Replay, replay

KINDS = [Allocator, ExpandableAllocator]


@pytest.mark.parametrize(
    ("size", "block", "segment"),
    [
        (1, 512, 2 * MIB),
        (512, 512, 2 * MIB),
        (513, 1024, 2 * MIB),
        (MIB, MIB, 2 * MIB),
        (MIB + 1, MIB + 512, 20 * MIB),
        (10 * MIB - 512, 10 * MIB - 512, 20 * MIB),
        (10 * MIB, 10 * MIB, 10 * MIB),
        (11 * MIB, 11 * MIB, 12 * MIB),
    ],
)
def test_blocks_and_segments_are_rounded_up(size: int, block: int, segment: int) -> None:
    assert rounded(size) == block
    assert segment_size(block) == segment
    allocator = Allocator()
    assert allocator.take(size).size in (block, segment)
    assert allocator.reserved == segment


def test_small_and_large_blocks_share_no_segment() -> None:
    allocator = Allocator()
    allocator.take(2 * MIB)
    allocator.take(MIB)
    assert allocator.reserved == 22 * MIB


def test_the_smallest_free_block_that_is_large_enough_is_taken() -> None:
    allocator = Allocator()
    large, small = allocator.take(40 * MIB), allocator.take(30 * MIB)
    allocator.free(large)
    allocator.free(small)
    assert allocator.take(25 * MIB) is small
    assert allocator.reserved == 70 * MIB


def test_a_rest_of_up_to_1_mib_stays_with_its_block() -> None:
    allocator = Allocator()
    allocator.free(allocator.take(30 * MIB))
    block = allocator.take(29 * MIB)
    assert (block.size, allocator.allocated) == (30 * MIB, 30 * MIB)
    allocator.free(block)
    assert allocator.take(28 * MIB).size == 28 * MIB  # more is cut off
    assert allocator.take(2 * MIB).size == 2 * MIB  # and can be taken
    assert allocator.reserved == 30 * MIB


@pytest.mark.parametrize("kind", KINDS)
def test_free_neighbours_are_joined(kind: type[Allocator]) -> None:
    allocator = kind()
    blocks = [allocator.take(4 * MIB) for _ in range(5)]
    assert allocator.reserved == 20 * MIB
    for index in (0, 2, 1):
        allocator.free(blocks[index])
    assert allocator.take(12 * MIB).address == blocks[0].address
    assert allocator.reserved == 20 * MIB


def test_at_the_limit_whole_free_segments_are_given_back() -> None:
    allocator = Allocator(60 * MIB)
    first = allocator.take(40 * MIB)
    allocator.free(first)
    allocator.take(50 * MIB)
    assert (allocator.reserved, allocator.retries) == (50 * MIB, 1)
    with pytest.raises(FullError):
        allocator.take(12 * MIB)


def test_a_segment_in_use_cannot_be_given_back() -> None:
    events = [0, 1, ~0, 2]
    sizes = [30 * MIB, 10 * MIB, 32 * MIB]
    shared = [40 * MIB, *sizes]
    assert replay(sizes, events, 45 * MIB).fits  # a segment of its own
    cut = [0, ~0, 1, 2, ~1, 3]  # 30 of 40 MiB are free, but not as a segment
    assert not replay(shared, cut, 62 * MIB).fits
    assert replay(shared, cut, 62 * MIB, expandable=True).fits


def test_expandable_segments_grow_by_20_mib_and_reuse_their_end() -> None:
    allocator = ExpandableAllocator()
    first = allocator.take(30 * MIB)
    assert allocator.reserved == 40 * MIB
    allocator.free(first)
    allocator.take(50 * MIB)
    assert allocator.reserved == 60 * MIB  # a default segment would have been added
    assert ExpandableAllocator().take(1).pool.unit == 2 * MIB


def test_unmapped_memory_is_mapped_again() -> None:
    allocator = ExpandableAllocator(100 * MIB)
    first, second = allocator.take(40 * MIB), allocator.take(20 * MIB)
    allocator.free(first)
    allocator.take(60 * MIB)  # beside the hole that is given back for it
    assert (allocator.reserved, allocator.retries) == (80 * MIB, 1)
    assert allocator.take(20 * MIB).address == first.address
    assert allocator.reserved == 100 * MIB
    allocator.free(second)
    assert allocator.take(20 * MIB).address == second.address


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(1, 64 * MIB), st.integers(0, 7)), max_size=60),
    st.sampled_from(KINDS),
    st.one_of(st.none(), st.integers(MIB, 256 * MIB)),
)
def test_what_holds_whatever_is_taken(
    requests: list[tuple[int, int]], kind: type[Allocator], limit: int | None
) -> None:
    allocator, taken = kind(limit), []
    for size, victim in requests:
        if len(taken) > victim:
            allocator.free(taken.pop(victim))
        try:
            taken.append(allocator.take(size))
        except FullError:
            assert limit is not None
        places = sorted((id(chunk.pool), chunk.address, chunk.size) for chunk in taken)
        for (pool, start, length), (other, following, _) in pairwise(places):
            assert pool != other or start + length <= following  # no two blocks overlap
        free = sum(size for pool in allocator._pools for size, _ in pool.free)
        assert allocator.allocated == sum(chunk.size for chunk in taken)
        assert allocator.reserved == allocator.allocated + free
        assert limit is None or allocator.reserved <= limit
    for chunk in taken:
        allocator.free(chunk)
    allocator._release()
    assert (allocator.allocated, allocator.reserved) == (0, 0)


def test_a_replay_tells_the_peaks() -> None:
    assert replay([MIB, 30 * MIB], [0, 1, ~1, ~0]) == Replay(True, 32 * MIB, 31 * MIB, 0)


# --------------------------------------------------------------------------------------------------- max_split_size_mb


def test_chunks_above_the_split_size_are_neither_cut_nor_taken_for_little() -> None:
    allocator = Allocator(split=64 * MIB)
    huge = allocator.take(100 * MIB)
    allocator.free(huge)
    allocator.take(30 * MIB)
    assert allocator.reserved == 130 * MIB  # the huge one stays as it is
    again = allocator.take(90 * MIB)
    assert (allocator.reserved, again.size) == (130 * MIB, 100 * MIB)  # taken whole: less than 20 MiB are wasted
    allocator.free(again)
    allocator.take(80 * MIB)
    assert allocator.reserved == 210 * MIB


def test_chunks_above_the_split_size_are_given_back_first() -> None:
    allocator = Allocator(limit=200 * MIB, split=64 * MIB)
    kept = allocator.take(30 * MIB)
    huge = allocator.take(100 * MIB)
    allocator.free(kept)
    allocator.free(huge)
    allocator.take(150 * MIB)
    assert (allocator.retries, allocator.reserved) == (1, 150 * MIB)  # both had to go
    roomy = Allocator(limit=300 * MIB, split=64 * MIB)
    for chunk in [roomy.take(size * MIB) for size in (30, 100, 150)]:
        roomy.free(chunk)
    roomy.take(70 * MIB)
    assert roomy.reserved == 30 * MIB + 150 * MIB + 70 * MIB  # the smallest that is enough went
