"""TIFF files of any type of number and up to four channels; Pillow writes no whole numbers that it cannot read."""

from __future__ import annotations

import struct

import numpy as np

SHORT, LONG = 3, 4
FORMATS = {"u": 1, "i": 2, "f": 3}
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB = 0, 1, 2


def tiff_bytes(pixels: np.ndarray, *, white_is_zero: bool = False) -> bytes:
    """Pixels (h, w, c) as a file of one uncompressed strip; the last of 2 or 4 channels is opacity.

    Args:
        pixels: numbers of any type but complex.
        white_is_zero: whether the least number of a grey image means white.

    Raises:
        ValueError: a TIFF has no such numbers.
    """
    height, width, channels = pixels.shape
    if pixels.dtype.kind not in FORMATS:
        raise ValueError(f"a TIFF has no {pixels.dtype}")
    body = np.ascontiguousarray(pixels, pixels.dtype.newbyteorder("<")).tobytes()
    grey = WHITE_IS_ZERO if white_is_zero else BLACK_IS_ZERO
    tags: dict[int, tuple[int, ...]] = {
        256: (width,),
        257: (height,),
        258: (8 * pixels.itemsize,) * channels,  # bits
        259: (1,),  # not compressed
        262: (RGB if channels > 2 else grey,),
        273: (8,),  # where the strip begins
        277: (channels,),
        278: (height,),  # rows of the strip
        279: (len(body),),
        339: (FORMATS[pixels.dtype.kind],) * channels,
    }
    if channels in (2, 4):
        tags[338] = (2,)  # opacity that the colours are not multiplied by
    out = bytearray(struct.pack("<2sHI", b"II", 42, 0) + body)
    entries = bytearray()
    for tag, values in sorted(tags.items()):
        kind = LONG if tag in (256, 257, 273, 278, 279) else SHORT
        packed = struct.pack(f"<{len(values)}{'I' if kind == LONG else 'H'}", *values)
        if len(packed) > 4:
            out += bytes(len(out) % 2)
            place = struct.pack("<I", len(out))
            out += packed
            packed = place
        entries += struct.pack("<HHI4s", tag, kind, len(values), packed)
    out += bytes(len(out) % 2)
    out[4:8] = struct.pack("<I", len(out))
    return bytes(out + struct.pack("<H", len(tags)) + entries + bytes(4))
