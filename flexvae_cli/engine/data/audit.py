"""A look through a whole folder of images before anything is trained on it: what is there, twice, damaged, leaked."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from flexvae_cli.engine.cores import cores
from flexvae_cli.engine.data.images import read_image, require_channels
from flexvae_cli.engine.data.opening import BadFile, opened
from flexvae_cli.engine.data.pam import pam_header
from flexvae_cli.engine.data.readers.span import UNSTATED, Span
from flexvae_cli.engine.data.sources import Item


@dataclass(frozen=True, slots=True)
class Seen:
    """An image that was decoded from its first pixel to its last.

    Attributes:
        name: below its source.
        format, mode: as Pillow calls them; of a PAM its TUPLTYPE, or how many channels it has.
        bits: of a channel: 8, 16, or 32 for float.
        size: (height, width), upright.
        bytes: of the file.
        low, high: the least and the greatest value, from 0 to 1.
        content: a hash of the pixels as they are trained on: files that differ in nothing else have the same.
    """

    name: str
    format: str
    mode: str
    bits: int
    size: tuple[int, int]
    bytes: int
    low: float
    high: float
    content: str


@dataclass(frozen=True, slots=True)
class Unusable:
    """A file that cannot serve as a sample, and why."""

    name: str
    reason: str


def look(item: Item, *, channels: int, min_size: int, max_pixels: int, span: Span = UNSTATED) -> Seen | Unusable:
    """Decode an image.

    Args:
        item: the image.
        channels: of a sample, see `read_image`.
        min_size: least shorter side.
        max_pixels: most pixels.
        span: the range of numbers that state none themselves.
    """
    try:
        require_channels(item.path, channels)
        kind, mode = _format(item.path, max_pixels)
        pixels = read_image(item.path, channels=channels, max_pixels=max_pixels, span=span)
    except BadFile as bad:
        return Unusable(item.name, bad.reason)
    height, width = pixels.shape[:2]
    if min(height, width) < min_size:
        return Unusable(item.name, f"is too small: {height}x{width} pixels (height x width)")
    white = 1.0 if pixels.dtype == np.float32 else float(np.iinfo(pixels.dtype).max)
    head = f"{pixels.dtype} {pixels.shape}".encode()
    content = hashlib.blake2b(head + np.ascontiguousarray(pixels).tobytes(), digest_size=16).hexdigest()
    low, high = float(pixels.min()) / white, float(pixels.max()) / white
    size = item.path.stat().st_size
    return Seen(item.name, kind, mode, 8 * pixels.itemsize, (height, width), size, low, high, content)


def _format(path: Path, max_pixels: int) -> tuple[str, str]:
    pam = pam_header(path)
    if pam is not None:
        return "PAM", pam.kind or f"{pam.depth} channels"
    with opened(path, max_pixels) as image:
        return image.format or "", image.mode


def look_through(items: Sequence[Item], **how: Any) -> Iterator[Seen | Unusable]:
    """`look` at every image, in order, with as many threads as there are cores to be had."""
    with ThreadPoolExecutor(cores()) as pool:
        yield from pool.map(partial(look, **how), items)


def duplicates(images: Iterable[Seen]) -> list[list[str]]:
    """The names of images whose pixels are the same, group by group."""
    groups: dict[str, list[str]] = {}
    for image in images:
        groups.setdefault(image.content, []).append(image.name)
    return [group for group in groups.values() if len(group) > 1]


def leaks(training: Iterable[Seen], validation: Iterable[Seen]) -> list[tuple[str, str]]:
    """Pairs of an image to train on and one to validate on whose pixels are the same."""
    held_out: dict[str, list[str]] = {}
    for image in validation:
        held_out.setdefault(image.content, []).append(image.name)
    return [(image.name, other) for image in training for other in held_out.get(image.content, ())]


def summary(images: Sequence[Seen], unusable: Sequence[Unusable]) -> dict[str, Any]:
    """What there is, in numbers."""
    sides = sorted(min(image.size) for image in images)
    return {
        "images": len(images),
        "unusable": [{"name": bad.name, "reason": bad.reason} for bad in unusable],
        "bytes": sum(image.bytes for image in images),
        "kinds": [
            {"format": kind, "mode": mode, "bits": bits, "images": count, **_sizes(images, (kind, mode, bits))}
            for (kind, mode, bits), count in Counter(map(_kind, images)).most_common()
        ],
        "shorter_side": {"min": sides[0], "median": sides[len(sides) // 2], "max": sides[-1]} if sides else None,
        "range": {"min": min(i.low for i in images), "max": max(i.high for i in images)} if images else None,
        "constant": [image.name for image in images if image.low == image.high],
        "duplicates": duplicates(images),
    }


def _kind(image: Seen) -> tuple[str, str, int]:
    return image.format, image.mode, image.bits


def _sizes(images: Sequence[Seen], kind: tuple[str, str, int]) -> dict[str, list[int]]:
    """The smallest and the largest image of a kind, by pixels."""
    sizes = sorted((image.size for image in images if _kind(image) == kind), key=lambda size: size[0] * size[1])
    return {"smallest": list(sizes[0]), "largest": list(sizes[-1])}
