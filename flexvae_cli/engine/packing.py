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
    digits = (indices.reshape(-1, 1).numpy() >> np.arange(width)) & 1  # (n, width)
    return torch.from_numpy(np.packbits(digits.astype(np.uint8), bitorder="little"))


def unpack(packed: Tensor, shape: Shape, width: int) -> Tensor:
    """The way back from `pack`: int64 indices of `shape`."""
    count = math.prod(shape)
    digits = np.unpackbits(packed.numpy(), count=count * width, bitorder="little").reshape(count, width)
    return torch.from_numpy((digits.astype(np.int64) << np.arange(width)).sum(1).reshape(shape))
