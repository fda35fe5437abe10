"""The layers of published autoencoders mean what the papers and torch mean by them."""

from __future__ import annotations

import pytest
import torch
from flexvae_layers_extra import plugin
from torch import Tensor, nn
from torch.nn import functional as F

from flexvae_cli.api import ShapeError
from flexvae_layers_core import plugin as core

SPECS = {spec.name: spec for spec in plugin.flexvae_layers()}
CORE = {spec.name: spec for spec in core.flexvae_layers()}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def randomised(module: nn.Module) -> nn.Module:
    """The module with every parameter drawn anew, so that no scale of one or bias of zero hides a mistake."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.5)
    return module.double()


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


@pytest.mark.parametrize(("ours", "theirs", "values"), [("RB", "VAERB", (32, 64)), ("AB", "VAEA", (32,))])
def test_block_with_the_eps_of_the_core_is_the_one_of_the_core(ours: str, theirs: str, values: tuple[int, ...]) -> None:
    reference = randomised(CORE[theirs](*values))
    module = SPECS[ours](*values, eps=1e-5).double()
    module.load_state_dict(reference.state_dict())
    x = noise(2, 32, 5, 6)
    torch.testing.assert_close(module(x), reference(x))


def test_attention_block_of_several_heads_is_torchs_attention() -> None:
    module, x = randomised(SPECS["AB"](8, num_heads=2, num_groups=4)), noise(2, 8, 3, 4)
    h = F.group_norm(x, 4, module.norm.weight, module.norm.bias, 1e-6).flatten(2).transpose(1, 2)
    reference = nn.MultiheadAttention(8, 2, batch_first=True).double()
    maps = [module.query, module.key, module.value]
    with torch.no_grad():
        reference.in_proj_weight.copy_(torch.cat([m.weight for m in maps]))
        reference.in_proj_bias.copy_(torch.cat([m.bias for m in maps]))
    reference.out_proj.load_state_dict(module.out.state_dict())
    expected = x + reference(h, h, h)[0].transpose(1, 2).reshape(x.shape)
    torch.testing.assert_close(module(x), expected)


def test_linear_attention_is_the_weighted_mean_of_the_values() -> None:
    module, x = randomised(SPECS["LinA"](8, head_dim=4)), noise(2, 8, 3, 4)
    p = dict(module.named_parameters())
    triple = torch.cat([F.conv2d(x, p[f"{name}.weight"]) for name in ("query", "key", "value")], 1).flatten(2)
    heads = []
    for head in triple.split(12, dim=1):  # a head is 3 * 4 channels in a row
        query, key, value = head.split(4, dim=1)  # (b, 4, positions)
        weights = F.relu(query).transpose(1, 2) @ F.relu(key)  # (b, to, from)
        weights = weights / (weights.sum(2, keepdim=True) + 1e-15)
        heads.append(value @ weights.transpose(1, 2))
    expected = F.conv2d(torch.cat(heads, 1).unflatten(2, (3, 4)), p["out.weight"])
    torch.testing.assert_close(module(x), expected, rtol=1e-4, atol=1e-4)  # the sums are float32


def test_linear_attention_is_exact_under_autocast() -> None:
    module, x = SPECS["LinA"](8, head_dim=8), torch.randn(1, 8, 4, 4)
    q, k, v = torch.randn(3, 1, 1, 8, 16).unbind(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = module._mix(q, k, v)
        assert module(x).dtype == torch.bfloat16
    assert torch.equal(inside, module._mix(q, k, v))


def test_heads_divide_the_channels() -> None:
    with pytest.raises(ValueError, match="head-dim 3 does not divide channels 8"):
        SPECS["LinA"].rule({"channels": 8, "head_dim": 3, "kernel_sizes": None})
    with pytest.raises(ValueError, match="num-heads 3 does not divide channels 8"):
        SPECS["AB"].rule({"channels": 8, "num_heads": 3, "num_groups": 4})


def test_gated_bottleneck_is_the_papers() -> None:
    module, x = randomised(SPECS["GLUMB"](3, expansion=2)), noise(2, 3, 5, 4)
    p = dict(module.named_parameters())
    h = F.silu(F.conv2d(x, p["expand.weight"], p["expand.bias"]))
    h = F.conv2d(h, p["depthwise.weight"], p["depthwise.bias"], padding=1, groups=12)
    torch.testing.assert_close(module(x), F.conv2d(h[:, :6] * F.silu(h[:, 6:]), p["project.weight"]))


def test_tiny_block_is_convolutions_with_relu_between() -> None:
    module, x = randomised(SPECS["TAEB"](3, 4)), noise(2, 3, 5, 6)
    p, h = dict(module.named_parameters()), x
    for i in (1, 2, 3):
        h = F.conv2d(F.relu(h) if i > 1 else h, p[f"conv_{i}.weight"], p[f"conv_{i}.bias"], padding=1)
    torch.testing.assert_close(module(x), F.relu(h + F.conv2d(x, p["shortcut.weight"])))


@pytest.mark.parametrize(
    ("padding_mode", "torchs"),
    [("zeros", "constant"), ("reflect", "reflect"), ("replicate", "replicate"), ("circular", "circular")],
)
def test_padding_is_torchs(padding_mode: str, torchs: str) -> None:
    x = noise(2, 3, 5, 6)
    assert torch.equal(SPECS["Pad2d"](1, 2, 0, 3, padding_mode=padding_mode)(x), F.pad(x, (1, 2, 0, 3), mode=torchs))


def test_padding_that_does_not_fit_is_refused_by_the_rule() -> None:
    rule = SPECS["Pad2d"].rule({"left": 0, "right": 5, "top": 0, "bottom": 0, "padding_mode": "reflect"})
    with pytest.raises(ShapeError, match="reflect padding of 5 does not fit the input of 8x5"):
        rule((3, 8, 5))


def test_root_mean_square_norm_is_torchs() -> None:
    module, x = randomised(SPECS["RMSN"](6, eps=1e-3, bias=True)), noise(2, 6, 3, 4)
    expected = F.rms_norm(x.movedim(1, -1), (6,), module.weight, 1e-3).movedim(-1, 1) + module.bias[:, None, None]
    torch.testing.assert_close(module(x), expected, rtol=1e-5, atol=1e-6)  # the mean square is float32


def test_channel_mean_undoes_channel_repeat() -> None:
    x = noise(2, 3, 4, 5)
    repeated = SPECS["ChRep"](2)(x)
    assert torch.equal(repeated[:, 0], repeated[:, 1])
    torch.testing.assert_close(SPECS["ChMean"](2)(repeated), x)
    with pytest.raises(ShapeError, match="takes a multiple of 2 channels, but 3 come in"):
        SPECS["ChMean"].rule({"group_size": 2})((3, 4))


def test_rescale_takes_one_range_to_the_other_and_back() -> None:
    x = torch.tensor([[[-1.0, 0.0, 1.0]]])
    assert SPECS["Rescale"](0.5, 0.5)(x).tolist() == [[[0.0, 0.5, 1.0]]]
    assert torch.equal(SPECS["Rescale"](2.0, -1.0)(SPECS["Rescale"](0.5, 0.5)(x)), x)
    with pytest.raises(ValueError, match="another number than 0"):
        SPECS["Rescale"].rule({"multiply": 0.0})


def test_soft_clamp_ends_at_its_limit() -> None:
    x = torch.tensor([[[-100.0, 0.001, 100.0]]])
    torch.testing.assert_close(SPECS["SoftClamp"](3.0)(x), torch.tensor([[[-3.0, 0.001, 3.0]]]))
