from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch

from flexvae_cli.engine import packing
from flexvae_cli.engine.packing import pack, packed_size, unpack, width_of


@pytest.mark.parametrize("codes", [2, 3, 10, 256, 257, 1000, 65536, 2**30 + 1])
def test_indices_come_back_from_as_many_bits_as_they_need(codes):
    width = width_of(codes)
    assert 2 ** (width - 1) < codes <= 2**width
    indices = torch.randint(codes, (3, 5, 7), generator=torch.Generator().manual_seed(0))
    indices[0, 0, :2] = torch.tensor([0, codes - 1])
    packed = pack(indices, width)
    assert packed.dtype == torch.uint8
    assert len(packed) == packed_size((3, 5, 7), width) == -(-105 * width // 8)
    assert torch.equal(unpack(packed, (3, 5, 7), width), indices)


@pytest.mark.parametrize("width", [1, 3, 8, 11, 16, 24, 62])
def test_many_indices_are_packed_in_parts_that_nobody_sees(width, monkeypatch):
    monkeypatch.setattr(packing, "CHUNK", 16)
    indices = torch.randint(2**width, (7, 5), generator=torch.Generator().manual_seed(width))  # two parts and a rest
    bits = (indices.reshape(-1, 1).numpy() >> np.arange(width)) & 1
    packed = pack(indices, width)
    assert packed.tolist() == np.packbits(bits.astype(np.uint8), bitorder="little").tolist()
    assert torch.equal(unpack(packed, (7, 5), width), indices)


def test_what_packing_needs_does_not_grow_with_the_bits():
    codes = torch.arange(1 << 20) % 2**11
    tracemalloc.start()
    try:
        packed = pack(codes, 11)
        tracemalloc.reset_peak()
        unpack(packed, tuple(codes.shape), 11)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1.6 * 8 * len(codes)  # the int64 that it gives, and parts


def test_the_layout_is_the_lowest_bit_first():
    assert pack(torch.tensor([0b101, 0b011, 0b110]), 3).tolist() == [0b10011101, 0b1]
