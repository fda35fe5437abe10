"""Which samples a training step sees: a pure function of the seed and the step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import torch

from flexvae_cli.engine.randomness import generator


@dataclass(frozen=True)
class MicroBatches:
    """One process's micro-batches of the steps from `start_step` up to, not including, `max_steps`; a `batch_sampler`.

    Every epoch is a new permutation of the samples, cut into optimizer steps of `batch_size` samples. The last step of
    an epoch is smaller where they do not divide; no sample is dropped or seen twice. A step is cut into at most
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
    """

    count: int
    batch_size: int
    accumulate: int
    seed: int
    start_step: int
    max_steps: int
    rank: int = 0
    world: int = 1

    def starting_at(self, step: int) -> MicroBatches:
        """The same, from another step on."""
        return replace(self, start_step=step)

    @property
    def of_all(self) -> MicroBatches:
        """The micro-batches of all processes, in order."""
        return replace(self, accumulate=self.accumulate * self.world, rank=0, world=1)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in an epoch, the smaller last one included."""
        return -(-self.count // self.batch_size)

    def step_samples(self, step: int) -> int:
        """The samples of a step, over all processes."""
        position = step % self.steps_per_epoch
        return min(self.batch_size, self.count - position * self.batch_size)

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
            first = step % self.steps_per_epoch * self.batch_size
            for start, stop in self._pieces(step):
                yield [(epoch, index) for index in order[first + start : first + stop]]
