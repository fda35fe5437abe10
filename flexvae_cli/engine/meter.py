"""Means of what steps return, and where the time went. Tensors stay on the device until they are read."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from flexvae_cli.errors import DivergedError


class Meter:
    """Collects steps between two lines of the log."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._sums: dict[str, Tensor] = {}
        self._finite: Tensor | None = None
        self._steps = self._samples = 0
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
        for name, value in values.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        finite = torch.isfinite(values["loss"]) & torch.isfinite(values["gradient_norm"])
        self._finite = finite if self._finite is None else self._finite & finite
        self._steps += 1
        self._samples += samples

    def check(self, step: int) -> None:
        """Refuse to go on with numbers that are not finite, so that nothing of them is ever saved.

        Raises:
            DivergedError: a loss or gradient since the last reset was NaN or infinite.
        """
        if self._finite is not None and not bool(self._finite):
            raise DivergedError(
                f"training diverged: the loss or its gradient was not finite at step {step} or shortly before",
                hint="the last checkpoint is sound; try a smaller optimizer.lr or optimizer.clip_norm",
            )

    def read(self, step: int) -> dict[str, float]:
        """The means since the last reading, which starts the next one; the device is waited for here and nowhere else.

        Raises:
            DivergedError: see `check`.
        """
        with self.stepping():  # on a GPU the steps are still being computed
            means = {name: value.item() / self._steps for name, value in self._sums.items()}
        self.check(step)
        seconds = self._waited + self._stepped
        means |= {"images_per_second": self._samples / seconds, "data_wait": self._waited / seconds}
        self.reset()
        return means
