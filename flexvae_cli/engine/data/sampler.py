"""Which samples a training step sees: a pure function of the seed and the step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import pairwise

import torch

from flexvae_cli.engine.randomness import generator


@dataclass(frozen=True)
class MicroBatches:
    """One process's micro-batches of the steps from `start_step` up to, not including, `max_steps`; a `batch_sampler`.

    Every epoch is a new permutation of the samples, cut into optimizer steps of `batch_size` samples. The last step of
    an epoch is smaller where they do not divide; no sample is dropped or seen twice. Where samples lie in buckets each
    bucket is cut by itself, so that a step has samples of one bucket alone, and the steps of an epoch, of which the
    last of every bucket may be smaller, come in a new order in every epoch. A step is cut into at most
    `accumulate` x `world` micro-batches whose sizes differ by at most one, and which are dealt out like cards: the k-th
    is micro-batch k // `world` of rank k % `world`. So they are the same for every such product, and where a step has
    fewer samples than there are processes the last ranks get none. Starting at step n yields exactly what starting at
    step 0 yields from there on.

    Attributes:
        count: samples in the data set.
        batch_size: samples per optimizer step, over all processes.
        accumulate: most micro-batches per optimizer step and process.
        seed: the seed of the run.
        start_step: the first step to yield.
        max_steps: the step to stop before.
        rank: which process this is, from 0.
        world: how many processes share the work.
        buckets: the bucket of each sample; empty where there is one.
    """

    count: int
    batch_size: int
    accumulate: int
    seed: int
    start_step: int
    max_steps: int
    rank: int = 0
    world: int = 1
    buckets: tuple[int, ...] = ()

    def starting_at(self, step: int) -> MicroBatches:
        """The same, from another step on."""
        return replace(self, start_step=step)

    @property
    def of_all(self) -> MicroBatches:
        """The micro-batches of all processes, in order."""
        return replace(self, accumulate=self.accumulate * self.world, rank=0, world=1)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in an epoch, the smaller ones included."""
        return len(self._cuts)

    def step_samples(self, step: int) -> int:
        """The samples of a step, over all processes."""
        start, stop = self._cut(step)
        return stop - start

    @cached_property
    def _cuts(self) -> list[tuple[int, int]]:
        """Where the steps of an epoch start and stop in its order, in which the buckets follow one another."""
        sizes = Counter(self.buckets) if self.buckets else {0: self.count}
        cuts, begin = list[tuple[int, int]](), 0
        for bucket in sorted(sizes):
            end = begin + sizes[bucket]
            cuts += [(first, min(first + self.batch_size, end)) for first in range(begin, end, self.batch_size)]
            begin = end
        return cuts

    def _cut(self, step: int) -> tuple[int, int]:
        """Where a step starts and stops in the order of its epoch."""
        epoch, turn = divmod(step, self.steps_per_epoch)
        return self._cuts[_turns(self.seed, self.steps_per_epoch, epoch)[turn] if self.buckets else turn]

    def step_sizes(self, step: int) -> list[int]:
        """The sizes of this process's micro-batches of a step; those of all processes sum to `step_samples`."""
        return [stop - start for start, stop in self._pieces(step)]

    def _pieces(self, step: int) -> list[tuple[int, int]]:
        """Where this process's micro-batches start and stop among the samples of a step."""
        samples = self.step_samples(step)
        parts = min(self.accumulate * self.world, samples)
        size, larger = divmod(samples, parts)
        edges = [part * size + min(part, larger) for part in range(parts + 1)]
        return list(pairwise(edges))[self.rank :: self.world]

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Yield each micro-batch as a list of (epoch, sample index)."""
        epoch, order = -1, list[int]()
        for step in range(self.start_step, self.max_steps):
            if step // self.steps_per_epoch != epoch:
                epoch = step // self.steps_per_epoch
                order = torch.randperm(self.count, generator=generator(self.seed, "order", epoch)).tolist()
                if self.buckets:
                    order.sort(key=self.buckets.__getitem__)  # stable: each bucket stays a permutation
            first, _ = self._cut(step)
            for start, stop in self._pieces(step):
                yield [(epoch, index) for index in order[first + start : first + stop]]


@lru_cache(maxsize=2)
def _turns(seed: int, steps: int, epoch: int) -> list[int]:
    """The order of the steps of an epoch."""
    turns: list[int] = torch.randperm(steps, generator=generator(seed, "turns", epoch)).tolist()
    return turns
