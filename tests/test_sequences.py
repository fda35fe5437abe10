"""Convolutions of one axis are torch's, and the causal ones do not look ahead."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from flexvae_layers_core import plugin

SPECS = {spec.name: spec for spec in plugin.flexvae_layers()}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def same_weights(module: nn.Module, reference: nn.Module) -> nn.Module:
    """The reference with weight normalisation and the weights of the module, drawn anew."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        normed = parametrizations.weight_norm(reference)
    normed.load_state_dict(
        {
            "bias": module.bias,
            "parametrizations.weight.original0": module.weight_g,
            "parametrizations.weight.original1": module.weight_v,
        }
    )
    return normed.double()


def test_weight_norm_is_torchs() -> None:
    x = noise(2, 4, 12)
    module = SPECS["C1d"](4, 6, 3, 2, 1, dilation=2, groups=2, weight_norm=True).double()
    reference = same_weights(module, nn.Conv1d(4, 6, 3, 2, 1, 2, 2).double())
    torch.testing.assert_close(module(x), reference(x))
    module = SPECS["CT1d"](4, 6, 4, 3, 1, 1, groups=2, weight_norm=True).double()
    reference = same_weights(module, nn.ConvTranspose1d(4, 6, 4, 3, 1, 1, 2).double())
    torch.testing.assert_close(module(x), reference(x))


def test_weight_norm_starts_as_the_convolution_itself() -> None:
    torch.manual_seed(1)
    plain = SPECS["C1d"](4, 6, 3)
    torch.manual_seed(1)
    normed = SPECS["C1d"](4, 6, 3, weight_norm=True)
    x = torch.randn(2, 4, 9)
    torch.testing.assert_close(normed(x), plain(x))


@pytest.mark.parametrize(
    ("code", "values", "stride"),
    [
        ("C1d", {"in_channels": 2, "out_channels": 2, "kernel_size": 3, "dilation": 2}, 1),
        ("C1d", {"in_channels": 2, "out_channels": 2, "kernel_size": 4, "stride": 2}, 2),
        ("CT1d", {"in_channels": 2, "out_channels": 2, "kernel_size": 4, "stride": 2}, 0.5),
    ],
    ids=["dilated", "down", "up"],
)
def test_causal_convolutions_do_not_look_ahead(code: str, values: dict[str, int], stride: float) -> None:
    module, x = SPECS[code](**values, causal=True).double(), noise(1, 2, 16).requires_grad_()
    y = module(x)
    assert y.shape[-1] == 16 / stride
    for position in range(y.shape[-1]):
        (gradient,) = torch.autograd.grad(y[..., position].sum(), x, retain_graph=True)
        last = int((position + 1) * stride - 1) if stride >= 1 else int(position * stride)
        assert gradient[..., last].any()
        assert not gradient[..., last + 1 :].any()


@pytest.mark.parametrize(
    ("code", "values", "what"),
    [
        ("C1d", {"kernel_size": 3, "padding": 1}, "a causal convolution pads by itself"),
        ("C1d", {"kernel_size": 2, "stride": 4}, "a window of at least the stride, 4"),
        ("CT1d", {"kernel_size": 3, "padding": 1}, "a causal convolution cuts by itself"),
        ("CT1d", {"kernel_size": 2, "stride": 4}, "a window of at least the stride, 4"),
    ],
)
def test_what_causal_convolutions_cannot_be_is_refused(code: str, values: dict[str, int], what: str) -> None:
    given = {"in_channels": 2, "out_channels": 2, "stride": 1, "padding": 0, "output_padding": 0, "dilation": 1}
    given |= {"groups": 1, "bias": True, "causal": True, "weight_norm": False, **values}
    with pytest.raises(ValueError, match=what):
        SPECS[code].rule(given)
