"""PNGs of 16 bits per channel with more than one channel: Pillow reads them with 8, torchvision with all 16.

torchvision's decoder ends the process where pixel data is damaged, so it never sees a file that nobody vouches for: the
pixel data is unpacked and checked here, and what it gets is a file that this module has written around it.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import torch

from flexvae_cli.engine.data.opening import BadFile, png_chunks

SIGNATURE = b"\x89PNG\r\n\x1a\n"
CHANNELS = {2: 3, 4: 2, 6: 4}  # PNG's colour type -> RGB, grey + alpha, RGBA
LAST_FILTER = 4  # a row begins with the number of its filter, 0 to 4


def is_deep(header: bytes) -> bool:
    """Whether the header of a PNG, the body of its IHDR chunk, is that of an image that `read_deep_png` reads."""
    _, _, depth, colour_type, compression, filtering, interlace = struct.unpack(">LLBBBBB", header)
    return depth == 16 and colour_type in CHANNELS and (compression, filtering, interlace) == (0, 0, 0)


def read_deep_png(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The colour (h, w, 1 or 3) of a PNG that `is_deep`, and its alpha (h, w, 1), in uint16.

    Raises:
        BadFile: the file is damaged.
    """
    header, key, parts = b"", b"", list[bytes]()
    for kind, body in png_chunks(path):
        if kind == b"IHDR":
            header = body
        elif kind == b"tRNS":
            key = body
        elif kind == b"IDAT":
            parts.append(body)
    pixels = _decoded(path, header, _rows(path, header, b"".join(parts)))
    if pixels.shape[2] != 3:
        return pixels[..., :-1], pixels[..., -1:]
    alpha = np.full_like(pixels[..., :1], 65535)
    if len(key) == 6:  # the one colour that is transparent
        alpha[(pixels == np.frombuffer(key, ">u2")).all(axis=2)] = 0
    return pixels, alpha


def _rows(path: Path, header: bytes, packed: bytes) -> bytes:
    """The rows of an image, each behind the number of its filter: as many and as long as the header says."""
    width, height = struct.unpack(">LL", header[:8])
    stride = 1 + 2 * CHANNELS[header[9]] * width
    unpacker = zlib.decompressobj()
    try:
        rows = unpacker.decompress(packed, height * stride + 1)
    except zlib.error as error:
        raise BadFile(path, "is damaged (its pixel data cannot be unpacked)") from error
    if len(rows) < height * stride:
        raise BadFile(path, "is truncated")
    if len(rows) > height * stride or not unpacker.eof:
        raise BadFile(path, "is damaged (more pixel data than pixels)")
    if np.frombuffer(rows, np.uint8).reshape(height, stride)[:, 0].max() > LAST_FILTER:
        raise BadFile(path, "is damaged (an unknown filter)")
    return rows


def _decoded(path: Path, header: bytes, rows: bytes) -> np.ndarray:
    """The pixels (h, w, c) in uint16."""
    from torchvision.io import ImageReadMode, decode_png  # costs seconds, and such images are rare

    file = SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(rows, 0)) + _chunk(b"IEND", b"")
    try:
        planes = decode_png(torch.frombuffer(bytearray(file), dtype=torch.uint8), ImageReadMode.UNCHANGED)  # (c, h, w)
    except RuntimeError as error:  # sides beyond a million pixels
        raise BadFile(path, "cannot be decoded with 16 bits per channel") from error
    return planes.permute(1, 2, 0).numpy()


def deep_png_bytes(pixels: np.ndarray) -> bytes:
    """Pixels (h, w, c) of uint16, with 1 to 4 channels, as a PNG of 16 bits per channel."""
    height, width, channels = pixels.shape
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = pixels.astype(">u2").reshape(height, -1).view(np.uint8)
    filtered = np.concatenate([np.zeros((height, 1), np.uint8), rows], axis=1).tobytes()  # filter 0: as it is
    header = struct.pack(">LLBBBBB", width, height, 16, colour_type, 0, 0, 0)
    return SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(filtered)) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">L", len(body)) + kind + body + struct.pack(">L", zlib.crc32(body, zlib.crc32(kind)))
