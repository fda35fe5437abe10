"""Blur, wavelet, divisive norm, gates and stochastic depth are what the papers say."""

from __future__ import annotations

import pytest
import torch
from flexvae_layers_extra import plugin
from torch import Tensor, nn
from torch.nn import functional as F

from flexvae_cli.api import ShapeError

SPECS = {spec.name: spec for spec in plugin.flexvae_layers()}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("taps", [[1.0, 1], [1.0, 2, 1], [1.0, 3, 3, 1], [1.0, 4, 6, 4, 1]], ids=len)
def test_blur_is_the_binomial_filter(taps: list[float], stride: int) -> None:
    x, row = noise(2, 3, 9, 8), torch.tensor(taps, dtype=torch.float64)
    kernel = torch.outer(row, row) / row.sum() ** 2
    before, behind = (len(taps) - 1) // 2, len(taps) // 2
    padded = F.pad(x, (before, behind, before, behind), mode="reflect")
    expected = F.conv2d(padded, kernel.expand(3, 1, -1, -1), stride=stride, groups=3)
    torch.testing.assert_close(SPECS["Blur"](len(taps), stride)(x), expected)


def test_upsampling_and_blur_is_the_filter_of_four_taps() -> None:
    x, row = noise(1, 1, 6, 6), torch.tensor([1.0, 3, 3, 1], dtype=torch.float64) / 4
    expected = F.conv_transpose2d(x, torch.outer(row, row)[None, None], stride=2, padding=1)
    got = nn.Sequential(nn.Upsample(scale_factor=2), SPECS["Blur"](3))(x)
    torch.testing.assert_close(got[..., 2:-2, 2:-2], expected[..., 2:-2, 2:-2])


def test_blur_that_does_not_fit_is_refused_by_the_rule() -> None:
    with pytest.raises(ShapeError, match="reflect padding of 2 does not fit an axis of 2"):
        SPECS["Blur"].rule({"kernel_size": 5, "stride": 1, "padding_mode": "reflect"})((3, 8, 2))


@pytest.mark.parametrize("shape", [(2, 3, 10), (2, 3, 6, 8), (2, 3, 4, 2, 6)], ids=["1-D", "2-D", "3-D"])
def test_the_wavelet_keeps_energy_and_comes_back(shape: tuple[int, ...]) -> None:
    x = noise(*shape)
    bands = SPECS["HaarD"]()(x)
    torch.testing.assert_close(bands.square().sum(), x.square().sum())
    torch.testing.assert_close(SPECS["HaarU"]()(bands), x)


def test_the_wavelets_bands_are_means_then_differences_along_w_h_and_both() -> None:
    columns, rows = torch.tensor([1.0, -1]).expand(2, 2), torch.tensor([[1.0], [-1]]).expand(2, 2)
    for band, image in enumerate((torch.ones(2, 2), columns, rows, columns * rows)):
        expected = torch.zeros(4).index_fill(0, torch.tensor(band), 2.0)
        torch.testing.assert_close(SPECS["HaarD"]()(image[None, None]).flatten(), expected)


def test_divisive_norm_is_its_formula_and_the_inverse_multiplies() -> None:
    module, x = SPECS["GDN"](3), torch.randn(2, 3, 4, 5)
    with torch.no_grad():
        module.gamma.normal_()
        module.beta.normal_()
    power = torch.einsum("ij,bjhw->bihw", module.gamma.square(), x.square()) + module.beta.square()[:, None, None]
    torch.testing.assert_close(module(x), x / (power + 1e-6).sqrt(), rtol=1e-4, atol=1e-5)
    inverse = SPECS["GDN"](3, inverse=True)
    inverse.load_state_dict(module.state_dict())
    torch.testing.assert_close(inverse(x), x * (power + 1e-6).sqrt(), rtol=1e-4, atol=1e-5)


def test_squeeze_and_excitation_scales_whole_channels() -> None:
    module, x = SPECS["SE"](4, reduction=2), torch.randn(2, 4, 3, 5)
    p = dict(module.named_parameters())
    hidden = F.relu(x.mean((2, 3)) @ p["reduce.weight"].T + p["reduce.bias"])
    gates = torch.sigmoid(hidden @ p["expand.weight"].T + p["expand.bias"])
    torch.testing.assert_close(module(x), x * gates[..., None, None])


def test_drop_path_takes_whole_samples_and_keeps_the_mean() -> None:
    module = SPECS["DropPath"](0.25)
    dropped = module(torch.ones(4000, 2, 3))
    per_sample = dropped.flatten(1)
    assert torch.equal(per_sample.amin(1), per_sample.amax(1))
    torch.testing.assert_close(per_sample.unique(), torch.tensor([0, 4 / 3]))
    assert abs(dropped.mean() - 1) < 0.05
    assert torch.equal(module.eval()(dropped), dropped)
    assert not SPECS["DropPath"](1.0)(torch.ones(3, 2)).any()
