"""Transformer blocks against torch's own, and what a window sees."""

from __future__ import annotations

import math

import pytest
import torch
from flexvae_layers_extra import plugin
from torch import Tensor, nn

from flexvae_cli.api import ShapeError

SPECS = {spec.name: spec for spec in plugin.flexvae_layers()}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def randomised(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.5)
    return module.double()


def test_transformer_block_is_torchs_encoder_layer() -> None:
    module, x = randomised(SPECS["ViT"](8, 2)), noise(2, 8, 3, 5)
    reference = nn.TransformerEncoderLayer(
        8, 2, 32, dropout=0, activation="gelu", layer_norm_eps=1e-6, batch_first=True, norm_first=True
    ).double()
    p = module.state_dict()
    names = {"norm1": "norm_1", "norm2": "norm_2", "linear1": "widen", "linear2": "narrow"}
    names |= {"self_attn.out_proj": "mix.project_out"}
    state = {f"{a}.{kind}": p[f"{b}.{kind}"] for a, b in names.items() for kind in ("weight", "bias")}
    state |= {f"self_attn.in_proj_{kind}": p[f"mix.project_in.{kind}"] for kind in ("weight", "bias")}
    reference.load_state_dict(state)
    expected = reference(x.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(x.shape)
    torch.testing.assert_close(module(x), expected)


def window_block(shift: int = 0, **zeroed: bool) -> nn.Module:
    module = randomised(SPECS["Swin"](8, 2, window_size=4, shift=shift, eps=1e-6))
    if zeroed:
        nn.init.zeros_(module.mix.bias)
    return module


def global_block(windowed: nn.Module) -> nn.Module:
    block = SPECS["ViT"](8, 2).double()
    block.load_state_dict({n: v for n, v in windowed.state_dict().items() if n != "mix.bias"})
    return block


def test_without_biases_every_window_is_a_transformer_block_of_its_own() -> None:
    module, x = window_block(bias=False), noise(2, 8, 8, 12)
    block, y = global_block(module), module(x)
    for top in (0, 4):
        for left in (0, 4, 8):
            part = (..., slice(top, top + 4), slice(left, left + 4))
            torch.testing.assert_close(y[part], block(x[part]))


def test_shifted_windows_are_cut_at_the_borders() -> None:
    module, x = window_block(shift=1, bias=False), noise(1, 8, 8, 12)
    block, y = global_block(module), module(x)
    for rows in (slice(0, 1), slice(1, 5), slice(5, 8)):
        for columns in (slice(0, 1), slice(1, 5), slice(5, 9), slice(9, 12)):
            part = (..., rows, columns)
            torch.testing.assert_close(y[part], block(x[part]))


def test_an_axis_of_one_window_is_not_shifted() -> None:
    module, x = window_block(shift=2, bias=False), noise(1, 8, 4, 8)
    part = (..., slice(0, 4), slice(2, 6))
    torch.testing.assert_close(module(x)[part], global_block(module)(x[part]))


def test_the_bias_belongs_to_the_offset_of_two_positions() -> None:
    attention = window_block().mix
    bias = attention._bias()  # (heads, 16, 16)
    for one, other in ((0, 0), (1, 6), (15, 2)):
        rows, columns = one // 4 - other // 4, one % 4 - other % 4
        assert torch.equal(bias[:, one, other], attention.bias[:, rows + 3, columns + 3])


def test_windows_that_do_not_fit_are_refused_by_the_rule() -> None:
    values = {"channels": 8, "num_heads": 2, "window_size": 4, "shift": 0, "expansion": 4}
    with pytest.raises(ShapeError, match="takes sizes that 4 divides, but 8x6 comes in"):
        SPECS["Swin"].rule(values)((8, 8, 6))
    with pytest.raises(ValueError, match="shift 4 wants to be smaller than window-size 4"):
        SPECS["Swin"].rule(values | {"shift": 4})
    with pytest.raises(ValueError, match="num-heads 3 does not divide channels 8"):
        SPECS["Swin"].rule(values | {"num_heads": 3})


def test_positions_are_sines_and_cosines_for_every_axis() -> None:
    added = SPECS["SinPos"](8)(torch.zeros(1, 8, 5, 7))[0]  # two frequencies for each axis: 1 and 1 / 100
    for row, column in ((0, 0), (3, 5)):
        angles = [row, row / 100], [column, column / 100]
        expected = [f(a) for axis in angles for f in (math.sin, math.cos) for a in axis]
        torch.testing.assert_close(added[:, row, column], torch.tensor(expected), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="channels 6 want to be a multiple of 4"):
        SPECS["SinPos"].rule({"channels": 6})((6, 5, 7))
