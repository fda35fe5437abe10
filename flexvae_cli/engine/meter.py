"""Means of what steps return, and where the time went. Tensors stay on the device until they are read."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from flexvae_cli.engine.memory.machine import process_memory


class Meter:
    """Collects steps between two lines of the log."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._sums: dict[str, Tensor] = {}  # name -> (sum, count) over the finite steps that have it
        self._samples = 0
        self._waited = self._stepped = 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """The time inside counts as waiting for data."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    @contextmanager
    def stepping(self) -> Iterator[None]:
        """The time inside counts as computing."""
        start = time.perf_counter()
        yield
        self._stepped += time.perf_counter() - start

    def add(self, values: dict[str, Tensor], samples: int) -> None:
        """Take in what a step returned; the device is not waited for."""
        finite = torch.isfinite(values["loss"]) & torch.isfinite(values["gradient_norm"])
        wide = torch.float32 if finite.device.type == "mps" else torch.float64  # which mps does not have
        for name, value in values.items():
            # a skipped step has nothing to tell of the others
            pair = torch.where(finite, torch.stack([value.to(wide), torch.ones_like(value, dtype=wide)]), 0.0)
            self._sums[name] = self._sums[name] + pair if name in self._sums else pair
        self._samples += samples

    def read(self) -> dict[str, float]:
        """The means since the last reading, which starts the next one; the device is waited for here and nowhere else.

        A value that no step had, or only steps that were skipped, is left out.
        """
        with self.stepping():  # on a GPU the steps are still being computed
            pairs = torch.stack(list(self._sums.values())).tolist() if self._sums else []
        means = {name: total / count for name, (total, count) in zip(self._sums, pairs, strict=True) if count}
        seconds = self._waited + self._stepped
        means |= {"images_per_second": self._samples / seconds, "data_wait": self._waited / seconds}
        means |= {"memory_bytes": taken} if (taken := _most_memory(self._sums.values())) else {}
        self.reset()
        return means


def _most_memory(tensors: Iterable[Tensor]) -> int:
    """Bytes: the most that ever was allocated on the GPU that holds the tensors, else resident of this process.

    0 where the system does not tell.
    """
    for tensor in tensors:
        if tensor.is_cuda:
            return torch.cuda.max_memory_allocated(tensor.device)
    try:
        return process_memory("VmHWM")
    except OSError:
        return 0
