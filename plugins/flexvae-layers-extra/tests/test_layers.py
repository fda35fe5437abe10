"""Every layer keeps its contract, and means what torch means by it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from flexvae_layers_extra import plugin
from torch import nn
from torch.nn import functional as F

from flexvae_cli.api import LayerSpec
from flexvae_cli.api.testing import check_layer

SPECS = {spec.name: spec for spec in plugin.flexvae_layers()}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_layer_keeps_its_contract(spec: LayerSpec) -> None:
    check_layer(spec)


@pytest.mark.parametrize(
    ("module", "reference", "shape"),
    [
        (SPECS["BN"](4), nn.BatchNorm1d(4), (3, 4, 10)),
        (SPECS["BN"](4, momentum=0.3), nn.BatchNorm2d(4, momentum=0.3), (3, 4, 6, 5)),
        (SPECS["BN"](4, eps=1e-3, affine=False), nn.BatchNorm3d(4, eps=1e-3, affine=False), (3, 4, 3, 4, 5)),
        (SPECS["IN"](4), nn.InstanceNorm1d(4), (3, 4, 10)),
        (SPECS["IN"](4, eps=1e-3), nn.InstanceNorm2d(4, eps=1e-3), (3, 4, 6, 5)),
        (SPECS["IN"](4, affine=True), nn.InstanceNorm3d(4, affine=True), (3, 4, 3, 4, 5)),
        (SPECS["PS"](3), nn.PixelShuffle(3), (2, 18, 4, 5)),
        (SPECS["PU"](3), nn.PixelUnshuffle(3), (2, 2, 12, 15)),
    ],
    ids=["BN 1-D", "BN 2-D", "BN 3-D", "IN 1-D", "IN 2-D", "IN 3-D", "PS", "PU"],
)
def test_layer_is_torchs_own(module: nn.Module, reference: nn.Module, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape) * 2 + 1
    torch.testing.assert_close(module(x), reference(x))
    torch.testing.assert_close(module.eval()(x), reference.eval()(x))


def test_batch_norm_updates_its_running_statistics_as_torch_does() -> None:
    module, reference = SPECS["BN"](4, momentum=0.3), nn.BatchNorm3d(4, momentum=0.3)
    for _ in range(2):
        x = torch.randn(3, 4, 3, 4, 5) * 2 + 1
        module(x), reference(x)
    assert {k.removeprefix("norm.") for k in module.state_dict()} == set(reference.state_dict())
    for name, value in reference.state_dict().items():
        torch.testing.assert_close(module.state_dict()[f"norm.{name}"], value)


def test_layer_norm_is_over_channels_alone() -> None:
    module, x = SPECS["LN"](6), torch.randn(2, 6, 4, 5) * 3 + 1
    mean, variance = x.mean(1, keepdim=True), x.var(1, keepdim=True, unbiased=False)
    torch.testing.assert_close(module(x), (x - mean) / (variance + 1e-5).sqrt())


@pytest.mark.parametrize("shape", [(2, 8, 5), (2, 8, 4, 3), (2, 8, 2, 3, 4)], ids=["1-D", "2-D", "3-D"])
def test_unshuffle_undoes_shuffle(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    assert torch.equal(SPECS["PU"](2)(SPECS["PS"](2)(x)), x)


def test_shuffle_of_one_axis_interleaves_channels() -> None:
    x = torch.tensor([[[0, 1], [10, 11]]])
    assert SPECS["PS"](2)(x).tolist() == [[[0, 10, 1, 11]]]


def test_depthwise_separable_convolution_is_a_full_one_of_low_rank() -> None:
    module, x = SPECS["DSC2d"](3, 5, 3, padding=1, bias=False), torch.randn(2, 3, 6, 7)
    depthwise, pointwise = module[0].weight, module[1].weight  # (3, 1, 3, 3), (5, 3, 1, 1)
    full = pointwise * depthwise[None, :, 0]  # (5, 3, 3, 3)
    torch.testing.assert_close(module(x), F.conv2d(x, full, padding=1), rtol=1e-4, atol=1e-5)


def test_convnext_block_is_the_papers() -> None:
    module, x = SPECS["CNX"](4), torch.randn(2, 4, 9, 8)
    nn.init.ones_(module.scale)
    p = dict(module.named_parameters())
    h = F.conv2d(x, p["depthwise.weight"], p["depthwise.bias"], padding=3, groups=4)
    h = (h - h.mean(1, keepdim=True)) / (h.var(1, keepdim=True, unbiased=False) + 1e-6).sqrt()
    h = F.gelu(F.conv2d(h, p["expand.weight"][..., None, None], p["expand.bias"]))
    h = F.conv2d(h, p["project.weight"][..., None, None], p["project.bias"])
    torch.testing.assert_close(module(x), x + h, rtol=1e-4, atol=1e-5)


def test_convnext_block_starts_as_almost_the_identity() -> None:
    x = torch.randn(2, 4, 9, 8)
    torch.testing.assert_close(SPECS["CNX"](4)(x), x, rtol=0, atol=1e-4)


def test_bilinear_upsampling_keeps_a_ramp_straight() -> None:
    ramp = torch.arange(6.0).expand(1, 1, 6, 6)
    inner = SPECS["UpB"](2)(ramp)[0, 0, 5, 1:-1]
    torch.testing.assert_close(inner, torch.arange(0.25, 5.0, 0.5))


def test_channel_dropout_takes_whole_channels() -> None:
    dropped = SPECS["Drop2d"](0.5)(torch.ones(4, 16, 3, 3))
    per_channel = dropped.flatten(2)
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(per_channel.amin(2), per_channel.amax(2))


def test_average_pool_can_leave_its_padding_out() -> None:
    ones = torch.ones(1, 1, 4, 4)
    assert SPECS["AvgP"](2, 2, 1)(ones).min() == 0.25
    assert SPECS["AvgP"](2, 2, 1, count_include_pad=False)(ones).min() == 1


def test_declaring_the_layers_does_not_import_torch() -> None:
    code = "import sys; from flexvae_layers_extra import plugin; plugin.flexvae_layers(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_readme_lists_every_code() -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text("utf-8")
    rows = [line for line in readme.splitlines() if line.startswith("| `")]
    assert rows == [f"| `{spec.usage}` | {spec.summary} |" for spec in SPECS.values()]
