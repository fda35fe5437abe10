"""The core layers: their contract, the sizes of the founding nets, and what the two blocks compute."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from flexvae_cli import codes
from flexvae_cli.api import LayerSpec, chain
from flexvae_cli.api.testing import check_layer
from flexvae_cli.errors import Problem
from flexvae_layers_core import plugin

SPECS = {spec.name: spec for spec in plugin.flexvae_layers()}

SEED_ENCODER = [
    "C2d_3_128_3_1_1",
    "2*VAERB_128_128",
    "C2d_128_128_3_4_0",
    "VAERB_128_256",
    "VAERB_256_256",
    "C2d_256_256_3_4_0",
    "3*VAERB_256_256",
    "VAEA_256",
    "VAERB_256_256",
    "GN_32_256",
    "SiLU",
    "C2d_256_8_3_1_1",
    "C2d_8_8_1_1_0",
]
SEED_DECODER = [
    "C2d_4_4_1_1_0",
    "C2d_4_512_3_1_1",
    "VAERB_512_512",
    "VAEA_512",
    "4*VAERB_512_512",
    "UpS_4",
    "C2d_512_512_3_1_1",
    "VAERB_512_256",
    "2*VAERB_256_256",
    "UpS_4",
    "C2d_256_256_3_1_1",
    "VAERB_256_128",
    "2*VAERB_128_128",
    "GN_32_128",
    "SiLU",
    "C2d_128_3_3_1_1",
]


def bound(written: list[str]) -> list[codes.Bound]:
    """The layers that a list of codes means, repeats written out."""
    problems: list[Problem] = []
    layers = []
    for text in written:
        code = codes.parse(text, "", problems)
        assert code is not None, problems
        layer = codes.bind(code, SPECS[code.name], "", problems)
        assert layer is not None, problems
        layers += [layer] * layer.count
    return layers


def randomised(module: nn.Module) -> nn.Module:
    """The same module with every parameter drawn anew, so that no scale of one or bias of zero hides a mistake."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.3)
    return module


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_layer_keeps_its_contract(spec: LayerSpec) -> None:
    check_layer(spec)


def test_there_are_the_seven_layers_of_the_structure_language() -> None:
    assert list(SPECS)[:7] == ["C2d", "VAERB", "VAEA", "GN", "SiLU", "MaxP", "UpS"]


def test_each_of_the_seven_has_its_like_in_every_dimension() -> None:
    assert list(SPECS)[7:] == ["C3d", "VAERB1d", "VAERB3d", "C1d", "CT1d"]
    assert {name for name, spec in SPECS.items() if spec.dims is None} == {"VAEA", "GN", "SiLU", "MaxP", "UpS"}
    assert [SPECS[name].dims for name in ("C1d", "C2d", "C3d", "VAERB1d", "VAERB", "VAERB3d")] == [1, 2, 3, 1, 2, 3]


@pytest.mark.parametrize("axes", [1, 3])
def test_a_block_of_another_dimension_is_the_block_of_two_on_data_that_is_flat(axes: int) -> None:
    """Along axes of size 1 a window of 3 sees zeros beside the one position: its middle tap alone counts."""
    torch.manual_seed(0)
    plane = randomised(SPECS["VAERB"](32, 64)).double()
    block = SPECS[f"VAERB{axes}d"](32, 64).double()
    state = plane.state_dict()
    for name, weight in block.state_dict().items():
        if weight.dim() > 2:
            wide = state[name]  # (out, in, 3, 3) or (out, in, 1, 1)
            weight.zero_()
            if axes == 1:
                weight.copy_(wide[:, :, wide.shape[2] // 2])
            else:
                weight[:, :, weight.shape[2] // 2] = wide
        else:
            weight.copy_(state[name])
    x = torch.randn(2, 32, *((1, 7) if axes == 1 else (5, 6)), dtype=torch.float64)
    given = x[:, :, 0] if axes == 1 else x[:, :, None]
    torch.testing.assert_close(block(given).flatten(2), plane(x).flatten(2))


@pytest.mark.parametrize("space", [(9,), (8, 6), (4, 6, 5)], ids=["1-D", "2-D", "3-D"])
def test_pooling_and_upsampling_are_torchs_in_every_dimension(space: tuple[int, ...]) -> None:
    x = torch.randn(2, 3, *space)
    pools = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}
    assert torch.equal(SPECS["MaxP"](3, 2, 1)(x), pools[len(space)](3, 2, 1)(x))
    factors = (1, 2, 3)[: len(space)]
    assert torch.equal(SPECS["UpS"](factors)(x), F.interpolate(x, scale_factor=[float(n) for n in factors]))


@pytest.mark.parametrize(
    ("written", "parameters", "takes", "gives"),
    [
        (SEED_ENCODER, 8_440_272, (3, 256, 256), (8, 16, 16)),
        (SEED_DECODER, 32_965_399, (4, 16, 16), (3, 256, 256)),
    ],
    ids=["encoder", "decoder"],
)
def test_the_founding_nets_have_their_size(
    written: list[str], parameters: int, takes: tuple[int, ...], gives: tuple[int, ...]
) -> None:
    layers = bound(written)
    rules = [SPECS[layer.spec.name].rule(layer.values) for layer in layers]
    step = chain(*[rule for rule in rules if rule])(takes)
    assert (step.shape, step.parameters) == (gives, parameters)
    with torch.device("meta"):
        net = nn.Sequential(*[layer.build() for layer in layers])
        assert tuple(net(torch.empty(1, *takes)).shape[1:]) == gives
    assert sum(p.numel() for p in net.parameters()) == parameters


def group_norm_by_definition(x: torch.Tensor, groups: int, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    b, c, h, w = x.shape
    grouped = x.reshape(b, groups, -1)  # (b, groups, c / groups * h * w)
    centred = grouped - grouped.mean(2, keepdim=True)
    normalised = centred / (centred.square().mean(2, keepdim=True) + 1e-5).sqrt()
    return normalised.reshape(b, c, h, w) * weight[:, None, None] + bias[:, None, None]


def silu_by_definition(x: torch.Tensor) -> torch.Tensor:
    return x / (1 + torch.exp(-x))


@pytest.mark.parametrize(("in_channels", "out_channels"), [(32, 32), (32, 64), (64, 32)])
def test_residual_block_is_its_definition(in_channels: int, out_channels: int) -> None:
    torch.manual_seed(0)
    block = randomised(SPECS["VAERB"](in_channels, out_channels)).double()
    x = torch.randn(2, in_channels, 6, 5, dtype=torch.float64)
    p = dict(block.named_parameters())
    h = silu_by_definition(group_norm_by_definition(x, 32, p["norm_1.weight"], p["norm_1.bias"]))
    h = F.conv2d(h, p["conv_1.weight"], p["conv_1.bias"], padding=1)
    h = silu_by_definition(group_norm_by_definition(h, 32, p["norm_2.weight"], p["norm_2.bias"]))
    h = F.conv2d(h, p["conv_2.weight"], p["conv_2.bias"], padding=1)
    shortcut = x if in_channels == out_channels else F.conv2d(x, p["shortcut.weight"], p["shortcut.bias"])
    torch.testing.assert_close(block(x), shortcut + h)


def test_attention_block_is_its_definition() -> None:
    torch.manual_seed(0)
    channels, (height, width) = 32, (4, 5)
    block = randomised(SPECS["VAEA"](channels)).double()
    x = torch.randn(2, channels, height, width, dtype=torch.float64)
    p = dict(block.named_parameters())

    def project(name: str, h: torch.Tensor) -> torch.Tensor:
        return torch.einsum("oi,bip->bop", p[f"{name}.weight"], h) + p[f"{name}.bias"][:, None]

    h = group_norm_by_definition(x, 32, p["norm.weight"], p["norm.bias"]).flatten(2)  # (b, c, positions)
    query, key, value = (project(name, h) for name in ("query", "key", "value"))
    weights = torch.softmax(torch.einsum("bcq,bck->bqk", query, key) / math.sqrt(channels), dim=2)
    mixed = torch.einsum("bqk,bck->bcq", weights, value)
    torch.testing.assert_close(block(x), x + project("out", mixed).reshape(x.shape))


def test_attention_block_is_bidirectional() -> None:
    torch.manual_seed(0)
    block = randomised(SPECS["VAEA"](32))
    x = torch.randn(1, 32, 4, 5, requires_grad=True)
    (gradient,) = torch.autograd.grad(block(x)[0, :, 0, 0].sum(), x)
    assert (gradient.abs().sum((0, 1)) > 0).all()


@pytest.mark.parametrize(("in_channels", "out_channels"), [(32, 32), (32, 64)])
def test_residual_block_agrees_with_diffusers(in_channels: int, out_channels: int) -> None:
    resnet = pytest.importorskip("diffusers.models.resnet")
    torch.manual_seed(0)
    ours = randomised(SPECS["VAERB"](in_channels, out_channels))
    theirs = resnet.ResnetBlock2D(
        in_channels=in_channels,
        out_channels=out_channels,
        temb_channels=None,
        groups=32,
        eps=1e-5,
        output_scale_factor=1.0,
    )
    names = {"norm_1": "norm1", "conv_1": "conv1", "norm_2": "norm2", "conv_2": "conv2", "shortcut": "conv_shortcut"}
    theirs.load_state_dict(renamed(ours, names))
    x = torch.randn(2, in_channels, 6, 5)
    torch.testing.assert_close(ours(x), theirs(x, None), rtol=1e-4, atol=1e-5)


def test_attention_block_agrees_with_diffusers() -> None:
    attention = pytest.importorskip("diffusers.models.attention_processor")
    torch.manual_seed(0)
    ours = randomised(SPECS["VAEA"](32))
    theirs = attention.Attention(
        query_dim=32,
        heads=1,
        dim_head=32,
        norm_num_groups=32,
        eps=1e-5,
        bias=True,
        residual_connection=True,
        rescale_output_factor=1.0,
    )
    names = {"norm": "group_norm", "query": "to_q", "key": "to_k", "value": "to_v", "out": "to_out.0"}
    theirs.load_state_dict(renamed(ours, names))
    x = torch.randn(2, 32, 4, 5)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)


def renamed(module: nn.Module, names: dict[str, str]) -> dict[str, torch.Tensor]:
    """The module's state dict under the other library's names of its parts."""
    return {
        f"{names[part]}.{tensor}": value
        for name, value in module.state_dict().items()
        for part, _, tensor in [name.rpartition(".")]
    }


def test_max_pool_pads_with_minus_infinity() -> None:
    assert SPECS["MaxP"](2, 2, 1)(torch.full((1, 1, 4, 4), -3.0)).max() == -3


def test_upsampling_repeats_each_position() -> None:
    x = torch.tensor([[[[1.0, 2.0]]]])
    assert SPECS["UpS"](2)(x).tolist() == [[[[1.0, 1.0, 2.0, 2.0], [1.0, 1.0, 2.0, 2.0]]]]
