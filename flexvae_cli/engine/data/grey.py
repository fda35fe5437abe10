"""Grey images of more than 8 bits: their numbers, and the range that these are of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from flexvae_cli.api.readers import About, BadFile
from flexvae_cli.engine.data.readers.span import HOW_TO_STATE, Span, require_finite

BITS_PER_SAMPLE, PHOTOMETRIC, WHITE_IS_ZERO, SAMPLE_FORMAT, UNSIGNED, SIGNED = (
    258,
    262,
    0,
    339,
    1,
    2,
)  # TIFF tags and values


def depth_of(image: Image.Image) -> type[np.generic]:
    """The type of the array that an image is returned as."""
    if image.mode == "F" or _is_whole(image):
        return np.float32
    return np.uint16 if image.mode == "I" or image.mode.startswith("I;") else np.uint8


def require_unsigned(path: Path, image: Image.Image) -> None:
    """Raise `BadFile` where Pillow takes numbers of 8 bits with a sign for others without."""
    kinds = getattr(image, "tag_v2", {}).get(SAMPLE_FORMAT, ())
    if depth_of(image) is np.uint8 and SIGNED in kinds:
        raise BadFile(path, "holds numbers of 8 bits with a sign, which are not read; save it with 16 bits")


def grey_plane(path: Path, image: Image.Image, span: Span) -> tuple[Image.Image, About]:
    """A grey image of more than 8 bits in mode F, 0 to 1: it holds 16 bits exactly and takes every filter.

    Args:
        path: its file.
        image: as Pillow has loaded it.
        span: the range of floats and of whole numbers of 32 bits or with a sign, which state none themselves; without
            it floats are taken as from 0 to 1.

    Returns:
        The plane, and what it takes to have the numbers back.

    Raises:
        BadFile: the range is not known, or there are numbers that are not finite.
    """
    tags = getattr(image, "tag_v2", {})
    numbers, about = _numbers(image, tags), dict[str, Any]()
    if depth_of(image) is np.uint16:
        low, high = 0.0, 2.0 ** tags.get(BITS_PER_SAMPLE, (16,))[0] - 1
    elif span.stated:
        low, high = span.of(path, numbers)
        about = {"dtype": numbers.dtype.newbyteorder("<").str, "low": low, "high": high}
    elif _is_whole(image):
        raise BadFile(path, f"holds whole numbers of unknown range: {HOW_TO_STATE}, or save it with 16 bits, unsigned")
    else:
        require_finite(path, numbers)
        low, high = 0.0, 1.0
    wide: Any = numbers.astype(np.float64 if span.stated or _is_whole(image) else np.float32)  # ends may lie far apart
    plane = ((wide - low) / (high - low)).astype(np.float32)  # (h, w)
    if about:
        plane = plane.clip(0, 1)
    elif not (plane.min() >= 0 and plane.max() <= 1):
        raise BadFile(path, f"holds numbers outside 0 to 1, whose range is not known: {HOW_TO_STATE}")
    inverted = tags.get(PHOTOMETRIC) == WHITE_IS_ZERO
    return Image.fromarray(1 - plane if inverted else plane), about | ({"white": 0} if inverted and about else {})


def with_channels(plane: np.ndarray, channels: int, depth: type[np.generic]) -> np.ndarray:
    """(h, w) in 0 to 1 -> (h, w, channels) of type `depth`: grey repeated, alpha opaque."""
    plane = plane.clip(0, 1)  # the filter overshoots at edges
    bands = [plane] * (3 if channels > 2 else 1) + [np.ones_like(plane)] * (channels in (2, 4))
    stacked = np.stack(bands, axis=2)
    return stacked if depth is np.float32 else np.rint(stacked * 65535).astype(depth)


def _is_whole(image: Image.Image) -> bool:
    """Whether the pixels are whole numbers whose type states no range."""
    return image.mode == "I" and image.format not in ("PNG", "PPM")  # those two mean 16 bits by it


def _numbers(image: Image.Image, tags: Any) -> np.ndarray:
    """The pixels (h, w) as numbers of the type that the file has."""
    numbers = np.asarray(image)
    if not _is_whole(image):
        return numbers
    unsigned = tags.get(SAMPLE_FORMAT, (UNSIGNED,))[0] == UNSIGNED
    if tags.get(BITS_PER_SAMPLE, (32,))[0] == 16:
        return numbers.astype(np.int16)
    return numbers.view(np.uint32) if unsigned else numbers  # Pillow has no such type, but all the bits
