from __future__ import annotations

from itertools import islice

from hypothesis import given
from hypothesis import strategies as st

from flexvae_cli.engine.data.sampler import MicroBatches

counts = st.integers(1, 60)


def micro_batches(
    count: int,
    batch_size: int,
    accumulate: int,
    *,
    start: int = 0,
    stop: int,
    seed: int = 0,
    rank: int = 0,
    world: int = 1,
) -> MicroBatches:
    return MicroBatches(count, batch_size, accumulate, seed, start, stop, rank, world)


@given(counts, st.integers(1, 70), st.integers(1, 9), st.integers(0, 2))
def test_an_epoch_sees_every_sample_once(count: int, batch_size: int, accumulate: int, epoch: int) -> None:
    steps = micro_batches(count, batch_size, accumulate, stop=1).steps_per_epoch
    assert (steps - 1) * batch_size < count <= steps * batch_size
    sampler = micro_batches(count, batch_size, accumulate, start=epoch * steps, stop=(epoch + 1) * steps)
    drawn = [at for micro in sampler for at in micro]
    assert sorted(drawn) == [(epoch, index) for index in range(count)]


@given(counts, st.integers(1, 70), st.integers(1, 9), st.integers(0, 10**12))
def test_micro_batches_are_of_nearly_equal_size(count: int, batch_size: int, accumulate: int, step: int) -> None:
    sampler = micro_batches(count, batch_size, accumulate, start=step, stop=step + 1)
    sizes = sampler.step_sizes(step)
    assert [len(micro) for micro in sampler] == sizes
    last = (step + 1) % sampler.steps_per_epoch == 0
    full = min(batch_size, count)
    assert sum(sizes) == (count - (sampler.steps_per_epoch - 1) * batch_size if last else full)
    assert len(sizes) == min(accumulate, sum(sizes))
    assert max(sizes) - min(sizes) <= 1


@given(counts, st.integers(1, 20), st.integers(1, 5), st.integers(0, 20))
def test_resuming_equals_going_on(count: int, batch_size: int, accumulate: int, start: int) -> None:
    whole = micro_batches(count, batch_size, accumulate, stop=25)
    skipped = sum(len(whole.step_sizes(step)) for step in range(start))
    resumed = micro_batches(count, batch_size, accumulate, start=start, stop=25)
    assert list(resumed) == list(islice(whole, skipped, None))
    assert list(whole) == list(whole)


def test_the_order_depends_on_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        (micro,) = micro_batches(50, 50, 1, start=epoch, stop=epoch + 1, seed=seed)
        return [index for _, index in micro]

    orders = [order(0, 0), order(0, 1), order(1, 0), list(range(50))]
    assert all(a != b for i, a in enumerate(orders) for b in orders[:i])
    assert order(0, 0) == orders[0]


def test_the_order_never_changes() -> None:
    assert list(micro_batches(5, 3, 2, stop=2)) == [[(0, 3), (0, 1)], [(0, 0)], [(0, 4)], [(0, 2)]]


def test_accumulation_does_not_change_what_a_step_sees() -> None:
    def steps(accumulate: int) -> list[list[tuple[int, int]]]:
        sampler = micro_batches(10, 4, accumulate, stop=6)
        micro = iter(sampler)
        return [[at for _ in sampler.step_sizes(step) for at in next(micro)] for step in range(6)]

    assert steps(1) == steps(3) == steps(4)


@given(counts, st.integers(1, 70), st.integers(1, 4), st.integers(1, 5), st.integers(0, 30))
def test_processes_share_a_step_as_one_process_would_cut_it(
    count: int, batch_size: int, accumulate: int, world: int, step: int
) -> None:
    """Micro-batch k of one process is micro-batch k // world of rank k % world: the same samples, the same size."""
    alone = micro_batches(count, batch_size, accumulate * world, start=step, stop=step + 1)
    ranks = [
        micro_batches(count, batch_size, accumulate, start=step, stop=step + 1, rank=rank, world=world)
        for rank in range(world)
    ]
    whole, parts = list(alone), [list(rank) for rank in ranks]
    assert [parts[k % world][k // world] for k in range(len(whole))] == whole
    assert sum(map(len, parts)) == len(whole)
    assert all([len(micro) for micro in part] == rank.step_sizes(step) for rank, part in zip(ranks, parts, strict=True))
    assert {rank.step_samples(step) for rank in ranks} == {sum(map(len, whole))}
    assert bool(parts[0])


def test_a_last_step_of_few_samples_leaves_the_last_processes_idle() -> None:
    sizes = [micro_batches(9, 4, 2, stop=3, rank=rank, world=2).step_sizes(2) for rank in range(2)]
    assert sizes == [[1], []]


def test_starting_late_costs_no_walk_through_the_past() -> None:
    far = 10**15
    sampler = micro_batches(1000, 8, 2, start=far, stop=far + 2)
    assert [len(micro) for micro in sampler] == [4, 4, 4, 4]
