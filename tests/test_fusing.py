"""The graph pass: fused layers are the plain ones up to rounding, forward and backward, and the net stays as it is."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from flexvae_cli.engine import rules
from flexvae_cli.engine.fusing import Chain, fuse, fused_in, steps_of
from flexvae_cli.engine.fusing.attention import attend
from flexvae_cli.engine.fusing.fusion import Fusion
from flexvae_cli.engine.fusing.norm_silu import NormSilu, norm_silu
from flexvae_cli.engine.fusing.padding import PaddedConvolution
from flexvae_cli.engine.fusing.strided import StridedSum
from flexvae_cli.engine.fusing.upsampling import UpsampledConvolution
from flexvae_cli.engine.memory.semantics import CudaSemantics, on_meta
from flexvae_layers_core.blocks import AttentionBlock, ResidualBlock

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
ZERO = {1: nn.ZeroPad1d, 2: nn.ZeroPad2d, 3: nn.ZeroPad3d}
FEW = settings(max_examples=40, deadline=None)


def run(net: nn.Module, x: Tensor, half: bool = False) -> tuple[Tensor, list[Tensor]]:
    """The output, and the gradients of input and parameters of a weighted sum of it."""
    x = x.detach().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        out = net(x)
    toward = torch.linspace(-1, 1, out.numel()).reshape(out.shape)
    return out.detach(), list(torch.autograd.grad((out.float() * toward).sum(), [x, *net.parameters()]))


def near(found: Tensor, wanted: Tensor, tolerance: float, least: float = 1e-3) -> None:
    """Equal to a part of the largest number that is wanted, or of `least`."""
    assert found.shape == wanted.shape
    scale = max(float(wanted.detach().abs().max()), least)
    assert float((found.float() - wanted.float()).detach().abs().max()) <= tolerance * scale


def same(plain: nn.Sequential, x: Tensor, kind: type[Fusion] | None, *, half: bool = False) -> None:
    """Whether a list computes the same when it is fused, by the kind of fusion that is expected."""
    net = copy.deepcopy(plain)
    fuse(net, "on")
    kinds = [type(step) for _, step in steps_of(net) if isinstance(step, Fusion)]
    assert kinds == ([] if kind is None else [kind])
    assert [name for name, _ in net.named_modules()] == [name for name, _ in plain.named_modules()]
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), plain.state_dict().values(), strict=True))
    alike(run(net, x, half), run(plain, x), half)


def alike(found: tuple[Tensor, list[Tensor]], wanted: tuple[Tensor, list[Tensor]], half: bool) -> None:
    """Whether outputs and gradients are the same; some are sums of large numbers that should be nothing."""
    largest = max(float(gradient.abs().max()) for gradient in wanted[1])
    near(found[0], wanted[0], 6e-2 if half else 1e-5)
    for a, b in zip(found[1], wanted[1], strict=True):
        near(a, b, 6e-2 if half else 1e-5, least=0.1 * largest)


@st.composite
def upsampled(draw: Any) -> tuple[nn.Sequential, Tensor]:
    axes = draw(st.integers(1, 3))
    most = {1: 6, 2: 4, 3: 3}[axes]
    groups = draw(st.sampled_from([1, 2]))
    factors = tuple(draw(st.integers(1, most)) for _ in range(axes))
    kernel = tuple(draw(st.integers(1, most)) for _ in range(axes))
    space = tuple(draw(st.integers(2, 5)) for _ in range(axes))
    padding = tuple(draw(st.integers(0, k - 1)) for k in kernel)
    if any(s * n + 2 * p < k for s, n, p, k in zip(factors, space, padding, kernel, strict=True)):
        padding = tuple(k - 1 for k in kernel)
    mode = draw(st.sampled_from(["zeros", "replicate", "circular"]))
    if mode == "circular":
        padding = tuple(min(p, s * n) for p, s, n in zip(padding, factors, space, strict=True))
    torch.manual_seed(draw(st.integers(0, 99)))
    bias = draw(st.booleans())
    conv = CONV[axes](2 * groups, 2 * groups, kernel, 1, padding, groups=groups, bias=bias, padding_mode=mode)
    factor = factors if len(set(factors)) > 1 or draw(st.booleans()) else factors[0]
    x = torch.randn(2, 2 * groups, *space)
    if axes == 2 and draw(st.booleans()):
        x = x.to(memory_format=torch.channels_last)
    return nn.Sequential(nn.Upsample(scale_factor=factor), conv), x


@FEW
@given(upsampled(), st.booleans())
def test_upsampling_and_convolution_are_one_transposed_convolution(case: Any, half: bool) -> None:
    same(*case, UpsampledConvolution, half=half)


@pytest.mark.parametrize(
    "layers",
    [
        (nn.Upsample(scale_factor=2), nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect")),  # mirrors other rows
        (nn.Upsample(scale_factor=2), nn.Conv2d(2, 2, 3, stride=2, padding=1)),
        (nn.Upsample(scale_factor=2), nn.Conv2d(2, 2, 3, padding=2, dilation=2)),
        (nn.Upsample(scale_factor=2), nn.Conv2d(2, 2, 2, padding=2)),  # rows of bias alone
        (nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(2, 2, 3, padding=1)),
        (nn.Upsample(scale_factor=1.5), nn.Conv2d(2, 2, 3, padding=1)),
        (nn.Upsample(size=(8, 8)), nn.Conv2d(2, 2, 3, padding=1)),
        (nn.Upsample(scale_factor=2), nn.ConvTranspose2d(2, 2, 3)),
    ],
)
def test_what_is_not_the_same_stays_apart(layers: tuple[nn.Module, ...]) -> None:
    same(nn.Sequential(*layers), torch.randn(1, 2, 4, 4), None)


@pytest.mark.parametrize("norm", [nn.GroupNorm(2, 4, bias=False), nn.GroupNorm(2, 4, affine=False)])
def test_a_norm_without_weights_or_biases_stays_apart(norm: nn.GroupNorm) -> None:
    x = torch.randn(1, 4, 5, 5)
    same(nn.Sequential(norm, nn.SiLU()), x, None)
    torch.testing.assert_close(norm_silu(norm, x, always=True), nn.functional.silu(norm(x)))


@pytest.mark.parametrize("space", [(5,), (3, 5)])
def test_an_empty_batch_comes_out_empty(space: tuple[int, ...]) -> None:
    x = torch.empty(0, 4, *space)
    plain = nn.Sequential(nn.GroupNorm(2, 4), nn.SiLU())
    net = copy.deepcopy(plain)
    fuse(net, "on")
    (out, found), (wanted, gradients) = run(net, x), run(plain, x)
    assert out.shape == wanted.shape
    assert all(torch.equal(a, b) for a, b in zip(found, gradients, strict=True))


def test_weight_normalization_is_fused_with_the_weight_that_it_makes() -> None:
    torch.manual_seed(0)
    normed = nn.utils.parametrizations.weight_norm(nn.Conv1d(2, 3, 5, padding=2))
    same(nn.Sequential(nn.Upsample(scale_factor=3), normed), torch.randn(2, 2, 6), UpsampledConvolution)


@FEW
@given(
    st.integers(1, 3), st.integers(1, 3), st.sampled_from([1, 2, 4]), st.booleans(), st.booleans(), st.integers(0, 99)
)
def test_norm_and_silu_are_one_function(axes: int, batch: int, groups: int, last: bool, half: bool, seed: int) -> None:
    torch.manual_seed(seed)
    norm = nn.GroupNorm(groups, 8, eps=1e-4)
    for parameter in norm.parameters():
        nn.init.normal_(parameter, 0.5, 0.5)
    x = 3 * torch.randn(batch, 8, *range(3, 3 + axes)) + 1
    if last and axes == 2:
        x = x.to(memory_format=torch.channels_last)
    plain = nn.Sequential(norm, nn.SiLU())
    same(plain, x, NormSilu)
    if half:
        fused = copy.deepcopy(plain)
        fuse(fused, "on", wide_norms=seed % 2 == 0)
        out = fused(x.to(torch.bfloat16))
        assert out.dtype == torch.bfloat16
        assert out.stride() == x.stride()
        near(out, plain(x.to(torch.bfloat16).float()), 2e-2)


@FEW
@given(
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(2, 4),
    st.sampled_from([32, 64]),
    st.booleans(),
    st.booleans(),
    st.integers(0, 99),
)
def test_a_block_and_a_strided_convolution_compose(
    axes: int, kernel: int, stride: int, width: int, bias: bool, half: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    block = ResidualBlock(32, width, axes)
    net = nn.Sequential(block, CONV[axes](width, 4, kernel, stride, bias=bias))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    same(net, torch.randn(1, 32, *range(4, 4 + axes)), StridedSum, half=half)


@pytest.mark.parametrize("options", [{"padding": 1}, {"stride": 1}, {"groups": 2}, {"dilation": 2}])
def test_other_strided_convolutions_stay_behind_their_block(options: dict[str, int]) -> None:
    conv = nn.Conv2d(32, 4, 2, **{"stride": 2, **options})
    net = nn.Sequential(ResidualBlock(32, 32), conv)
    fuse(net, "on")
    assert len(steps_of(net)) == 2


@FEW
@given(
    st.integers(1, 3),
    st.tuples(st.integers(0, 2), st.integers(0, 2)),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(0, 1),
    st.integers(1, 2),
    st.integers(4, 7),
)
def test_a_convolution_adds_the_zeros_itself(
    axes: int, ends: tuple[int, int], kernel: int, stride: int, padding: int, dilation: int, n: int
) -> None:
    torch.manual_seed(0)
    if n + sum(ends) + 2 * padding < dilation * (kernel - 1) + 1:
        return
    net = nn.Sequential(ZERO[axes](ends * axes), CONV[axes](2, 2, kernel, stride, padding, dilation))
    same(net, torch.randn(1, 2, *(n + i for i in range(axes))), PaddedConvolution if ends[0] <= ends[1] else None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_is_the_same_in_either_form(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    each = [torch.randn(2, 3, 10, 8).to(dtype) for _ in range(3)]
    assert rules.plain_attention_pays(each[0], each[1]) == (dtype is torch.bfloat16)
    wanted = nn.functional.scaled_dot_product_attention(*(t.float() for t in each))
    near(attend(*each), wanted, 1e-5 if dtype is torch.float32 else 2e-2)
    assert attend(*each).dtype == dtype


class Nested(nn.Module):
    """A block of a stranger with a list inside."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(32, 4, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x)
        return out


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        ResidualBlock(32, 32),
        nn.Conv2d(32, 32, 2, 2),
        AttentionBlock(32),
        nn.GroupNorm(8, 32),
        nn.SiLU(),
        Nested(),
    )


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_whole_net_is_the_same_fused(half: bool, layout: torch.memory_format) -> None:
    plain, fused = net(), net().to(memory_format=layout)
    fuse(fused, "on")
    assert [(each.names, each.what) for each in fused_in(fused)] == [
        (("1", "2"), StridedSum.what),
        (("4", "5"), NormSilu.what),
        (("1",), NormSilu.what),
        (("6.body.0", "6.body.1"), UpsampledConvolution.what),
    ]
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    alike(run(fused, x.to(memory_format=layout), half), run(plain, x), half)


def test_a_layer_that_a_hook_looks_at_is_computed_by_itself() -> None:
    plain, fused = net(), net()
    fuse(fused, "on")
    seen: dict[str, Tensor] = {}
    names = ["1", "1.norm_2", "1.conv_2", "4", "6.body.0"]
    for name in names:
        fused.get_submodule(name).register_forward_hook(lambda m, i, out, name=name: seen.__setitem__(name, out))
    x = torch.randn(1, 3, 8, 8)
    fused(x)
    assert list(seen) == ["1.norm_2", "1.conv_2", "1", "4", "6.body.0"]
    torch.testing.assert_close(seen["1"], plain[:2](x))
    torch.testing.assert_close(seen["6.body.0"], plain[6].body[0](plain[:6](x)))


def test_a_layer_that_stands_in_a_list_twice_is_called_twice() -> None:
    torch.manual_seed(0)
    silu, conv = nn.SiLU(), nn.Conv2d(4, 4, 1)
    same(nn.Sequential(silu, conv, nn.GroupNorm(2, 4), silu, conv), torch.randn(1, 4, 5, 5), NormSilu)


def test_a_part_of_a_list_is_that_part() -> None:
    fused = net()
    fuse(fused, "on")
    x = torch.randn(1, 3, 8, 8)
    torch.testing.assert_close(fused[:2](x), net()[:2](x))
    torch.testing.assert_close(fused[1](fused[0](x)), net()[:2](x))


def test_a_copy_computes_with_its_own_weights() -> None:
    fused = net()
    fuse(fused, "on")
    other = copy.deepcopy(fused)
    assert isinstance(other.forward, Chain)
    x = torch.randn(1, 3, 8, 8)
    before = other(x)
    with torch.no_grad():
        for parameter in fused.parameters():
            parameter.zero_()
    torch.testing.assert_close(other(x), before)
    assert float(fused(x).detach().abs().max()) == 0.0


class Chance(nn.Module):
    """A stranger's layer whose attributes have the names of what blocks offer, and mean something else."""

    def __init__(self) -> None:
        super().__init__()
        self.attend = nn.Softmax(-1)
        self.last = nn.Conv2d(32, 32, 1)

    def norm_silu(self, x: Tensor) -> Tensor:
        return 2 * x

    def terms(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.attend(self.norm_silu(x)) * self.last(x)
        return out


class Scaled(ResidualBlock):
    """Derived from a block that offers its terms, with another sum."""

    def forward(self, x: Tensor) -> Tensor:
        added, h = self.terms(x)
        return added - self.last(h)


class Modules(nn.Module):
    """Says that it offers attention, which is a module of its own."""

    flexvae_fuses = ("attend",)

    def __init__(self) -> None:
        super().__init__()
        self.attend = nn.Softmax(-1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.attend(x)
        return out


@pytest.mark.parametrize("stranger", [Chance, lambda: Scaled(32, 32), Modules])
def test_only_a_class_that_says_so_is_computed_in_another_way(stranger: Any) -> None:
    torch.manual_seed(0)
    same(nn.Sequential(stranger(), nn.Conv2d(32, 4, 2, 2)), torch.randn(1, 32, 6, 6), None)
    block, found = ResidualBlock(32, 32), stranger()
    fuse(nn.Sequential(block, found), "on")
    assert "norm_silu" in vars(block)
    assert not {"norm_silu", "attend"} & vars(found).keys()


def test_blocks_of_the_plugins_offer_what_they_have() -> None:
    from flexvae_layers_extra import attention_blocks, residual_blocks

    blocks = [
        (ResidualBlock(32, 32), residual_blocks.ResidualBlock(32, 32, 8, 1e-6)),
        (AttentionBlock(32), attention_blocks.AttentionBlock(32, 2, 8, 1e-6)),
    ]
    for name, pair in zip(["norm_silu", "attend"], blocks, strict=True):
        for block in pair:
            fuse(block, "on")
            assert name in vars(block)
    strided = nn.Sequential(blocks[0][1], nn.Conv2d(32, 4, 2, 2))
    fuse(strided, "on")
    assert next(each.what for each in fused_in(strided)) == StridedSum.what


@pytest.mark.parametrize("cuda", [False, True])
def test_a_dry_run_for_a_gpu_attends_as_a_gpu_does(cuda: bool) -> None:
    each = [torch.empty(1, 1, 64, 32, dtype=torch.bfloat16, device="meta", requires_grad=True) for _ in range(3)]
    with on_meta(CudaSemantics() if cuda else None):
        assert rules.on_cpu(each[0].device) is not cuda
        found = attend(*each).grad_fn
    assert found is not None
    assert ("FlashAttention" in found.name()) is cuda
    assert rules.on_cpu(each[0].device)


def test_layers_that_are_to_stay_apart_do_and_off_does_nothing() -> None:
    first, second = net(), net()
    fuse(first, "on", apart=[first[1], first[5]])
    assert [names for names, step in steps_of(first) if isinstance(step, Fusion)] == []
    fuse(second, "off")
    assert not fused_in(second)


def test_a_fused_net_can_be_moved_to_another_precision() -> None:
    fused = net()
    fuse(fused, "on")
    x = torch.randn(1, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(fused.double()(x), net().double()(x))


def test_the_rules_know_when_it_does_not_pay() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert rules.phase_kernels_pay(cpu, 36, 16, positions=256)
    assert not rules.phase_kernels_pay(cpu, 36, 16, positions=16)  # making the kernel takes longer
    assert not rules.phase_kernels_pay(cpu, 9, 9, positions=10**6)  # factor 1
    assert not rules.phase_kernels_pay(gpu, 36, 16, positions=256)
    seed = (128, 128, 128), (9, 9, 25), (256 * 256, 64 * 64)
    assert rules.composing_pays(cpu, *seed)
    assert not rules.composing_pays(cpu, (512, 512, 512), (9, 9, 25), (16 * 16, 4 * 4))
    assert not rules.composing_pays(gpu, *seed)
    x = torch.zeros(1, 64, 8, 8).to(memory_format=torch.channels_last)
    assert rules.norm_silu_pays(x, 32)
    assert not rules.norm_silu_pays(x, 4)
    assert not rules.norm_silu_pays(x.contiguous(), 32)
    with torch.no_grad():
        assert not rules.norm_silu_pays(x, 32)
    many = torch.zeros(1, 1, 1 << 14, 1, dtype=torch.bfloat16)
    assert not rules.plain_attention_pays(many, many)


@pytest.mark.parametrize(
    ("kind", "dtype", "training", "fused", "last"),
    [
        ("cpu", None, False, True, True),
        ("cpu", None, True, True, False),
        ("cpu", torch.bfloat16, True, True, True),
        ("cpu", torch.bfloat16, True, False, False),
        ("cuda", None, False, True, False),
        ("cuda", torch.bfloat16, False, True, True),
        ("cuda", torch.bfloat16, True, False, True),
        ("mps", torch.bfloat16, True, True, False),
    ],
)
def test_the_layout_follows_device_and_precision(
    kind: str, dtype: torch.dtype | None, training: bool, fused: bool, last: bool
) -> None:
    found = rules.layout(torch.device(kind), dtype, training=training, fused=fused)
    assert (found is torch.channels_last) == last
