"""What stands between two layers: a tensor in a file, read and written in bands."""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from flexvae_cli.api import Shape
from flexvae_cli.engine.files import writing

Make = Callable[[Shape, int], "Activation"]
"""Makes room for a tensor of a shape that is cut along an axis."""


class Activation:
    """A float32 tensor in a file that is mapped into memory and has no name, so that nothing is left of it in the end.

    Without a folder there is no file either: what is read is on torch's meta device, what is written is forgotten, and
    `bands` gives one band of the middle. That is how a layer is asked what it would take.

    Args:
        shape: of the tensor.
        folder: where the disk is.
        axis: what bands are cut along.

    Raises:
        DiskFullError: there is no room for it.
    """

    def __init__(self, shape: Shape, folder: Path | None, axis: int = 2) -> None:
        self.shape, self.axis = shape, axis
        self._array: np.ndarray | None = None
        self._map: mmap.mmap | None = None
        if folder is not None:
            size = 4 * prod(shape)
            with writing(folder, size), tempfile.TemporaryFile(dir=folder) as file:
                _reserve(file.fileno(), size)
                self._map = mmap.mmap(file.fileno(), size)
            self._array = np.frombuffer(self._map, np.float32).reshape(shape)

    @property
    def rows(self) -> int:
        """Positions along the axis that bands are cut from."""
        return self.shape[self.axis]

    def bands(self, rows: int) -> list[tuple[int, int]]:
        """First and last-but-one row of each band."""
        all_bands = [(first, min(first + rows, self.rows)) for first in range(0, self.rows, rows)]
        return all_bands if self._array is not None else all_bands[len(all_bands) // 2 :][:1]

    def read(self, first: int, end: int) -> Tensor:
        """A copy of rows `first` to `end`."""
        shape = (*self.shape[: self.axis], end - first, *self.shape[self.axis + 1 :])
        if self._array is None:
            return torch.empty(shape, device="meta")
        band = torch.empty(shape)
        np.copyto(band.numpy(), self._array[self._rows(first, end)])
        self._forget()
        return band

    def write(self, first: int, band: Tensor) -> None:
        """Put rows in place, from `first` on."""
        if self._array is not None:
            rows = self._rows(first, first + band.shape[self.axis])
            np.copyto(self._array[rows], band.detach().to("cpu", torch.float32).numpy())
            self._forget()

    def whole(self) -> Tensor:
        """A copy of everything."""
        return self.read(0, self.rows)

    def _rows(self, first: int, end: int) -> tuple[slice, ...]:
        return (*(slice(None) for _ in self.shape[: self.axis]), slice(first, end))

    def _forget(self) -> None:
        """Let the system have the memory of the pages back: what they hold is in the file."""
        if self._map is not None and hasattr(self._map, "madvise"):
            self._map.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        """Give file and disk back."""
        self._array = None
        if self._map is not None:
            self._map.close()
            self._map = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _reserve(descriptor: int, size: int) -> None:
    """Take the room on the disk now: a mapped file that finds it full later ends the process."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
    else:
        os.truncate(descriptor, size)
