"""A look through a whole data set before anything is trained on it: what is there, twice, damaged, leaked."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from flexvae_cli.api.readers import About, BadFile
from flexvae_cli.api.trace import Shape, text
from flexvae_cli.engine.cores import cores
from flexvae_cli.engine.data.choosing import IMAGES
from flexvae_cli.engine.data.files import Numbers
from flexvae_cli.engine.data.opening import opened
from flexvae_cli.engine.data.pam import pam_header
from flexvae_cli.engine.data.readers.span import pieces, require_finite
from flexvae_cli.engine.data.sources import Item
from flexvae_cli.engine.looking import Way


@dataclass(frozen=True, slots=True)
class Kind:
    """What samples that are of one kind have in common.

    Attributes:
        format: of an image as Pillow calls it; else how its file ends, as in `NII.GZ`.
        mode: of an image as Pillow calls it, of a PAM its TUPLTYPE, or how many channels it has; of a sound how its
            numbers are stored, as in `PCM_16`; else their type.
        bits: of a number once it was read: 8, 16, 32 or 64.
        channels: of a sample.
        rate: samples per second, of sounds.
        spacing: of volumes whose file tells where they lie: between neighbours along each axis, in its unit.
    """

    format: str
    mode: str
    bits: int
    channels: int
    rate: int | None = None
    spacing: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class Seen:
    """A sample that was read from its first number to its last.

    Attributes:
        name: below its source.
        kind: what it has in common with others.
        size: of its space, (height, width) of an image, upright.
        bytes: of the file; of the numbers where many samples are in one file.
        low, high: the least and the greatest number, as the file has them.
        least, greatest: the numbers that become -1 and 1.
        clipped: the part of the numbers that lies beyond these and is clipped.
        content: a hash of the numbers as they are trained on: samples that differ in nothing else have the same.
    """

    name: str
    kind: Kind
    size: Shape
    bytes: int
    low: float
    high: float
    least: float
    greatest: float
    clipped: float
    content: str

    @property
    def reach(self) -> tuple[float, float]:
        """The least and the greatest number where 0 and 1 stand for the numbers that become -1 and 1."""
        width = self.greatest - self.least
        return (self.low - self.least) / width, (self.high - self.least) / width


@dataclass(frozen=True, slots=True)
class Unusable:
    """A file that cannot serve as a sample, and why."""

    name: str
    reason: str


def look(item: Item, way: Way) -> Seen | Unusable:
    """Read a sample.

    Args:
        item: the sample.
        way: how.
    """
    try:
        numbers = way.read(item.path)
        require_finite(item.path, numbers.data)  # of a file that is mapped nobody has looked at them yet
        format, mode = _format(item.path, way, numbers)
        size = numbers.shape[:-1]
        least = way.least * len(size) if len(way.least) == 1 else way.least
        if any(there < wanted for there, wanted in zip(size, least, strict=True)):
            return Unusable(item.name, f"is too small: {text(size)}, wanted are {text(least)} or more")
        return _seen(item, numbers, format, mode)
    except BadFile as bad:
        return Unusable(item.name, bad.reason)


def look_through(items: Sequence[Item], way: Way) -> Iterator[Seen | Unusable]:
    """`look` at every sample, in order, with as many threads as there are cores to be had."""
    with ThreadPoolExecutor(cores()) as pool:
        yield from pool.map(partial(look, way=way), items)


def _seen(item: Item, numbers: Numbers, format: str, mode: str) -> Seen:
    data, about = numbers.data, numbers.about
    ends = [(float(part.min()), float(part.max())) for part in pieces(data)]
    low, high = min(each[0] for each in ends), max(each[1] for each in ends)
    clipped = 0.0
    if numbers.clipped and (low < numbers.low or high > numbers.high):
        beyond = sum(int(((part < numbers.low) | (part > numbers.high)).sum()) for part in pieces(data))
        clipped = beyond / data.size
    kind = Kind(format, mode, 8 * data.itemsize, data.shape[-1], about.get("rate"), _spacing(about))
    size = item.path.stat().st_size if item.path.is_file() else data.nbytes
    return Seen(
        item.name, kind, data.shape[:-1], size, low, high, numbers.low, numbers.high, clipped, _content(numbers)
    )


def _content(numbers: Numbers) -> str:
    """A hash of what the samples are made of, however it lies in the file."""
    data = numbers.data
    dtype = data.dtype.newbyteorder("=")
    hashed = hashlib.blake2b(f"{dtype} {data.shape}".encode(), digest_size=16)
    for part in pieces(data):
        hashed.update(np.ascontiguousarray(part, dtype=dtype).tobytes())
    return hashed.hexdigest()


def _format(path: Path, way: Way, numbers: Numbers) -> tuple[str, str]:
    """What a file is, and how its numbers are stored."""
    if way.chosen.name != IMAGES:
        stored = numbers.about.get("subtype") or np.dtype(numbers.about.get("dtype", numbers.data.dtype)).name
        return way.chosen.reader.suffix(path.name).lstrip(".").upper(), str(stored)
    pam = pam_header(path)
    if pam is not None:
        return "PAM", pam.kind or f"{pam.depth} channels"
    with opened(path, way.most) as image:
        return image.format or "", image.mode


def _spacing(about: About) -> tuple[float, ...] | None:
    """The lengths of an affine's columns, rounded to what a header can tell."""
    if "affine" not in about:
        return None
    return tuple(float(f"{length:.6g}") for length in np.linalg.norm(np.array(about["affine"])[:3, :3], axis=0))


def duplicates(samples: Iterable[Seen]) -> list[list[str]]:
    """The names of samples whose numbers are the same, group by group."""
    groups: dict[str, list[str]] = {}
    for sample in samples:
        groups.setdefault(sample.content, []).append(sample.name)
    return [group for group in groups.values() if len(group) > 1]


def leaks(training: Iterable[Seen], validation: Iterable[Seen]) -> list[tuple[str, str]]:
    """Pairs of a sample to train on and one to validate on whose numbers are the same."""
    held_out: dict[str, list[str]] = {}
    for sample in validation:
        held_out.setdefault(sample.content, []).append(sample.name)
    return [(sample.name, other) for sample in training for other in held_out.get(sample.content, ())]
