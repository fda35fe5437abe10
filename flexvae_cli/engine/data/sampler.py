"""Which samples a training step sees: a pure function of the seed and the step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import torch

from flexvae_cli.engine.randomness import generator


@dataclass(frozen=True)
class MicroBatches:
    """The micro-batches of the steps from `start_step` up to, not including, `max_steps`; a `batch_sampler`.

    Every epoch is a new permutation of the samples, cut into optimizer steps of `batch_size` samples. The last step of
    an epoch is smaller where they do not divide; no sample is dropped or seen twice. A step is cut into at most
    `accumulate` micro-batches whose sizes differ by at most one. Starting at step n yields exactly what starting at
    step 0 yields from there on.

    Attributes:
        count: samples in the data set.
        batch_size: samples per optimizer step.
        accumulate: most micro-batches per optimizer step.
        seed: the seed of the run.
        start_step: the first step to yield.
        max_steps: the step to stop before.
    """

    count: int
    batch_size: int
    accumulate: int
    seed: int
    start_step: int
    max_steps: int

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in an epoch, the smaller last one included."""
        return -(-self.count // self.batch_size)

    def step_sizes(self, step: int) -> list[int]:
        """The sizes of the micro-batches of a step; they sum to the samples of that step."""
        position = step % self.steps_per_epoch
        samples = min(self.batch_size, self.count - position * self.batch_size)
        parts = min(self.accumulate, samples)
        size, larger = divmod(samples, parts)
        return [size + (part < larger) for part in range(parts)]

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Yield each micro-batch as a list of (epoch, sample index)."""
        epoch, order = -1, list[int]()
        for step in range(self.start_step, self.max_steps):
            if step // self.steps_per_epoch != epoch:
                epoch = step // self.steps_per_epoch
                order = torch.randperm(self.count, generator=generator(self.seed, "order", epoch)).tolist()
            rest = iter(order[step % self.steps_per_epoch * self.batch_size :][: self.batch_size])
            for size in self.step_sizes(step):
                yield [(epoch, index) for index in islice(rest, size)]
