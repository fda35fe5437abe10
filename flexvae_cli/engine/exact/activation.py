"""What stands between two layers: a tensor in a file, read and written in bands."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any, Self, cast

import torch
from torch import Tensor

from flexvae_cli.api import Shape
from flexvae_cli.engine.exact.moments import Moments
from flexvae_cli.engine.files import writing

Make = Callable[[Shape, int], "Activation"]
"""Makes room for a tensor of a shape that is cut along an axis, see `Activation`."""

PIECE = 1 << 20  # bytes that are taken out of the order of the file at a time


class Activation:
    """A float32 tensor in a file that has no name, so that nothing is left of it in the end.

    A band lies in one piece there, row after row. Of data with positions (b, c, *space) the channels of a position lie
    together, and that is how they are in memory: channels-last, as convolutions of a CPU want them. It is read and
    written, not mapped: mapped pages would count as memory of the process, and each would be a fault.

    Without a folder there is no file either: what is read is on torch's meta device, what is written is forgotten, and
    `bands` gives one band of the middle. That is how a layer is asked what it would take.

    Args:
        shape: of the tensor.
        folder: where the disk is.
        axis: what bands are cut along: 2, the first of the positions, or -2, the tokens of (..., tokens, c).

    Attributes:
        moments: of the channels of what was written so far, where it has positions.

    Raises:
        DiskFullError: there is no room for it.
    """

    def __init__(self, shape: Shape, folder: Path | None, axis: int = 2) -> None:
        self.shape, self.axis = shape, axis
        axes = list(range(len(shape)))
        self._order = [axes.pop(axis), *axes]  # of the axes in the file
        if axis == 2:
            self._order.append(self._order.pop(2))
        self.moments = Moments(shape[1]) if axis == 2 else None
        self._file: Any = None
        self._real = folder is not None
        if folder is not None:
            size = 4 * prod(shape)
            with writing(folder, size):
                self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115, `close` does
                try:
                    _reserve(self._file.fileno(), size)
                except BaseException:
                    self.close()
                    raise

    @property
    def rows(self) -> int:
        """Positions along the axis that bands are cut from."""
        return self.shape[self.axis]

    def bands(self, rows: int) -> list[tuple[int, int]]:
        """First and last-but-one row of each band."""
        all_bands = [(first, min(first + rows, self.rows)) for first in range(0, self.rows, rows)]
        return all_bands if self._real else all_bands[len(all_bands) // 2 :][:1]

    def read(self, first: int, end: int) -> Tensor:
        """A copy of rows `first` to `end`, in the order of the file."""
        others = (self.shape[axis] for axis in self._order[1:])
        band = torch.empty((end - first, *others), device="cpu" if self._real else "meta")
        if self._file is not None:
            self._file.seek(first * self._row)
            _move(self._file.readinto, band)
        return band.permute(_inverse(self._order))

    def write(self, first: int, band: Tensor) -> None:
        """Put rows in place, from `first` on, each once."""
        ordered = band.detach().permute(self._order).to(torch.float32).contiguous()
        if self.moments is not None:
            self.moments.add(ordered)
        if self._file is not None:
            self._file.seek(first * self._row)
            _move(self._file.write, ordered.cpu())

    def whole(self) -> Tensor:
        """A copy of everything, contiguous."""
        out = torch.empty(self.shape, device="cpu" if self._real else "meta")
        for first, end in self.bands(max(1, PIECE // self._row)):
            out.narrow(self.axis, first, end - first).copy_(self.read(first, end))
        return out

    @property
    def _row(self) -> int:
        """Bytes."""
        return 4 * prod(self.shape) // self.rows

    def close(self) -> None:
        """Give file and disk back."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _inverse(order: list[int]) -> list[int]:
    return sorted(range(len(order)), key=order.__getitem__)


def _move(act: Callable[[memoryview], int], band: Tensor) -> None:
    """Read or write the bytes of a tensor that lies in one piece; the system may take it in several."""
    rest = memoryview(cast(Any, band.numpy())).cast("B")
    while rest:
        done = act(rest)
        if not done:
            raise EOFError("a file of an activation is shorter than it was made")
        rest = rest[done:]


def _reserve(descriptor: int, size: int) -> None:
    """Take the room on the disk now, before anything is computed."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
    else:
        os.truncate(descriptor, size)
