from __future__ import annotations

import pytest
import torch

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


def test_the_layout_is_the_lowest_bit_first():
    assert pack(torch.tensor([0b101, 0b011, 0b110]), 3).tolist() == [0b10011101, 0b1]
