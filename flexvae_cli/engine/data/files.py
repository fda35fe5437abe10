"""Samples from files that are no pictures: windows of signals, crops of volumes and of arrays, by a reader."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flexvae_cli.api.readers import About, BadFile, Header, Reader
from flexvae_cli.api.trace import Shape, text
from flexvae_cli.engine.data.readers.span import require_finite
from flexvae_cli.engine.data.sources import THREADS, Item
from flexvae_cli.engine.randomness import generator

MOST = 64_000_000  # positions of a file, where nothing else is said


@dataclass(frozen=True, slots=True)
class Numbers:
    """Numbers of a file (*space, c), or a part of them, as the file has them; see `api.readers.Reading`."""

    data: np.ndarray
    low: float
    high: float
    path: Path
    about: About
    deviation: np.ndarray | None = None
    clipped: bool = True

    @property
    def shape(self) -> Shape:
        return tuple(self.data.shape)

    @property
    def nbytes(self) -> float:
        """What keeping it costs: a file that is mapped is not worth to be kept."""
        more = 0 if self.deviation is None else self.deviation.nbytes
        return math.inf if isinstance(self.data, np.memmap) else self.data.nbytes + more

    def __getitem__(self, part: Any) -> Numbers:
        deviation = None if self.deviation is None else self.deviation[part]
        return replace(self, data=self.data[part], deviation=deviation)

    def sample(self, noise: int | None = None) -> torch.Tensor:
        """float32 (c, *space) in [-1, 1]; numbers beyond `low` and `high` are clipped, where they are to be.

        Args:
            noise: the seed to draw from a distribution with; None takes its mean.

        Raises:
            BadFile: a mapped file has numbers here that are not finite.
        """
        if isinstance(self.data, np.memmap):
            require_finite(self.path, self.data)
        wide = np.float64 if self.data.dtype.itemsize > 2 else np.float32
        planes: Any = np.moveaxis(self.data, -1, 0).astype(wide)
        if noise is not None and self.deviation is not None:
            drawn = torch.randn(planes.shape, generator=generator(noise)).numpy()
            planes = planes + np.moveaxis(self.deviation, -1, 0) * drawn
        scaled = planes * (2 / (self.high - self.low)) - (self.high + self.low) / (self.high - self.low)
        kept = scaled.clip(-1, 1) if self.clipped else scaled
        return torch.from_numpy(np.ascontiguousarray(kept, dtype=np.float32))


@dataclass(frozen=True, slots=True)
class FilePreparation:
    """How a file becomes an array of at least the size that a model takes; `Preparation` for what is no picture.

    Attributes:
        shape: (c, *space) of a sample.
        reader: what reads the files.
        most: the most positions of a file.
    """

    shape: Shape
    reader: Reader
    most: int

    def at(self, shape: Shape) -> FilePreparation:
        """The same for samples of another size."""
        return replace(self, shape=shape)

    def read(self, item: Item) -> Numbers:
        """The numbers of a file.

        Raises:
            BadFile: it cannot be read, or is smaller than `shape`.
        """
        numbers = read_numbers(self.reader, item.path, self.shape, self.most)
        fault = self._too_small(item.path, numbers.shape[:-1])
        if fault is not None:
            raise fault
        return numbers

    def tensor(self, array: Numbers, noise: int | None = None) -> torch.Tensor:
        """What `read` gave, or a part of it, as a sample."""
        return array.sample(noise)

    def look(self, item: Item) -> Header | BadFile:
        """What the header of a file says, or why it cannot be used."""
        try:
            header = checked_header(self.reader, item.path, self.shape, self.most)
        except BadFile as bad:
            return bad
        return self._too_small(item.path, header.shape[1:]) or header

    def _too_small(self, path: Path, space: Shape) -> BadFile | None:
        if all(there >= wanted for there, wanted in zip(space, self.shape[1:], strict=True)):
            return None
        return BadFile(path, f"is too small: {text(space)}, wanted are {text(self.shape[1:])} or more")


def checked_header(reader: Reader, path: Path, like: Shape, most: int) -> Header:
    """What a file says of itself.

    Raises:
        BadFile: it cannot be read, or claims more positions than are allowed.
    """
    header = reader.header(path, like)
    positions = math.prod(header.shape[1:])
    if positions > most:
        raise BadFile(path, f"has {positions:,} positions; data.max_pixels allows {most:,}")
    return header


def read_numbers(reader: Reader, path: Path, like: Shape, most: int) -> Numbers:
    """The numbers of a file, its header looked at first.

    Raises:
        BadFile: it cannot be read, or claims more positions than are allowed.
    """
    checked_header(reader, path, like, most)
    found = reader.read(path, like)
    return Numbers(found.data, found.low, found.high, path, found.about, found.deviation, found.clipped)


def usable_files(items: Sequence[Item], preparation: FilePreparation) -> tuple[list[Item], list[BadFile], list[Header]]:
    """Look at the header of every file.

    Returns:
        The files that can be used as far as can be told, what is wrong with the others, and the headers of the first.
    """
    with ThreadPoolExecutor(THREADS) as pool:
        seen = list(pool.map(preparation.look, items))
    good = [item for item, found in zip(items, seen, strict=True) if isinstance(found, Header)]
    return good, [found for found in seen if isinstance(found, BadFile)], [f for f in seen if isinstance(f, Header)]
