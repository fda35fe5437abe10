"""Indices of a quantizer on disk: as many bits for each as they need, one behind the other."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from flexvae_cli.engine.bottlenecks.quantized import QuantizedBottleneck

if TYPE_CHECKING:
    from flexvae_cli.api import Shape
    from flexvae_cli.engine.model import Model

PACKED = re.compile(r"uint([1-9]|[1-5][0-9]|6[0-2])", re.ASCII)
"""What a manifest calls numbers of so many bits."""
CHUNK = 1 << 16  # indices that are in bits at a time, a byte for each bit; together they end with a whole byte


def codes_of(model: Model) -> int | None:
    """How many codes an index of the model's bottleneck chooses from; None where it gives none that could be packed."""
    bottleneck = model.vae.bottleneck
    bits = bottleneck.bits if isinstance(bottleneck, QuantizedBottleneck) else None
    return round(2**bits) if bits is not None and 0 < bits <= 62 else None


def width_of(codes: int) -> int:
    """The bits that one of so many indices needs."""
    return max(1, math.ceil(math.log2(codes)))


def packed_size(shape: Shape, width: int) -> int:
    """The bytes that packed indices of a shape take."""
    return (math.prod(shape) * width + 7) // 8


def pack(indices: Tensor, width: int) -> Tensor:
    """Indices of any shape, in row-major order, as uint8 (bytes,): the lowest bit of the first index comes first.

    Args:
        indices: whole numbers from 0 to 2^width - 1, on the host.
        width: bits of each.
    """
    numbers, packed = indices.reshape(-1).numpy(), np.empty(packed_size(indices.shape, width), np.uint8)
    for start in range(0, len(numbers), CHUNK):
        whole = numbers[start : start + CHUNK].astype(_type_of(width)).view(np.uint8)
        digits = np.unpackbits(whole, bitorder="little").reshape(-1, 8 * _type_of(width).itemsize)
        part = np.packbits(digits[:, :width], bitorder="little")
        packed[start * width // 8 :][: len(part)] = part
    return torch.from_numpy(packed)


def unpack(packed: Tensor, shape: Shape, width: int) -> Tensor:
    """The way back from `pack`: int64 indices of `shape`."""
    count, data = math.prod(shape), packed.numpy()
    numbers = np.empty(count, np.int64)
    for start in range(0, count, CHUNK):
        here = min(CHUNK, count - start)
        part = data[start * width // 8 :][: packed_size((here,), width)]
        digits = np.zeros((here, 8 * _type_of(width).itemsize), np.uint8)
        digits[:, :width] = np.unpackbits(part, count=here * width, bitorder="little").reshape(here, width)
        numbers[start : start + here] = np.packbits(digits, bitorder="little").view(_type_of(width))
    return torch.from_numpy(numbers.reshape(shape))


def _type_of(width: int) -> np.dtype[np.unsignedinteger]:
    """The narrowest whole numbers that have so many bits, lowest byte first."""
    return np.dtype(next(f"<u{size}" for size in (1, 2, 4, 8) if width <= 8 * size))
