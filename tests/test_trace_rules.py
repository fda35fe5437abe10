"""The static rules against torch: shapes and parameters on the meta device, reach by gradients."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from flexvae_cli.api import (
    Reach,
    Rule,
    ShapeError,
    Step,
    add,
    attention,
    chain,
    conv,
    conv_transpose,
    group_norm,
    pointwise,
    pool,
    resize,
    same,
    scale,
    shuffle,
    unshuffle,
)
from flexvae_cli.api.trace import per_axis

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
POOLS = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}

quick = settings(max_examples=60, deadline=None, derandomize=True)
axes = st.integers(1, 3)


def each_axis(count: int, numbers: st.SearchStrategy[int]) -> st.SearchStrategy[Any]:
    """One number for all axes, or one for each."""
    return numbers | st.tuples(*[numbers] * count)


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[int, dict[str, Any]]:
    count, groups = draw(axes), draw(st.integers(1, 3))
    return count, {
        "in_channels": groups * draw(st.integers(1, 3)),
        "out_channels": groups * draw(st.integers(1, 3)),
        "kernel_size": draw(each_axis(count, st.integers(1, 4))),
        "stride": draw(each_axis(count, st.integers(1, 4))),
        "padding": draw(each_axis(count, st.integers(0, 3))),
        "dilation": draw(each_axis(count, st.integers(1, 3))),
        "groups": groups,
        "bias": draw(st.booleans()),
    }


def agree(rule: Rule, build: Callable[[], nn.Module], shape: tuple[int, ...], device: str = "meta") -> None:
    """Rule and module give the same shape and parameter count, or the rule refuses what torch refuses or empties."""
    step, output, parameters = None, None, 0
    with contextlib.suppress(ValueError):
        step = rule(shape)
    with contextlib.suppress(RuntimeError, AssertionError, ValueError), torch.device(device):
        module = build()
        output = tuple(module(torch.empty(1, *shape)).shape[1:])
        parameters = sum(p.numel() for p in module.parameters())
    assert (step.shape if step else None) == (output if output and all(output) else None)
    assert step is None or step.parameters == parameters


@quick
@given(convolutions(), st.sampled_from(["zeros", "reflect", "replicate", "circular"]), st.data())
def test_conv_is_torchs(layer: tuple[int, dict[str, Any]], padding_mode: str, data: st.DataObject) -> None:
    count, values = layer
    values = {**values, "padding_mode": padding_mode}
    shape = (values["in_channels"], *data.draw(st.tuples(*[st.integers(1, 12)] * count)))
    agree(conv(**values), lambda: CONVOLUTIONS[count](**values), shape)


@quick
@given(convolutions(), st.data())
def test_conv_transpose_is_torchs(layer: tuple[int, dict[str, Any]], data: st.DataObject) -> None:
    count, values = layer
    values = {**values, "output_padding": data.draw(each_axis(count, st.integers(0, 3)))}
    shape = (values["in_channels"], *data.draw(st.tuples(*[st.integers(1, 6)] * count)))
    # The meta device accepts an output padding that every other refuses.
    agree(conv_transpose(**values), lambda: TRANSPOSED[count](**values), shape, device="cpu")


@quick
@given(axes, st.data())
def test_pool_is_torchs(count: int, data: st.DataObject) -> None:
    values = {
        "kernel_size": data.draw(each_axis(count, st.integers(1, 4))),
        "stride": data.draw(st.none() | each_axis(count, st.integers(1, 4))),
        "padding": data.draw(each_axis(count, st.integers(0, 2))),
    }
    shape = (3, *data.draw(st.tuples(*[st.integers(1, 12)] * count)))
    agree(pool(**values), lambda: POOLS[count](**values), shape)


@quick
@given(axes, st.integers(1, 4), st.data())
def test_scale_is_torchs(count: int, factor: int, data: st.DataObject) -> None:
    shape = (3, *data.draw(st.tuples(*[st.integers(1, 6)] * count)))
    agree(scale(factor), lambda: nn.Upsample(scale_factor=factor), shape)


@quick
@given(st.integers(1, 4), st.integers(1, 20), st.integers(1, 12), st.integers(1, 12))
def test_shuffles_are_torchs(factor: int, channels: int, height: int, width: int) -> None:
    shape = (channels, height, width)
    agree(shuffle(factor), lambda: nn.PixelShuffle(factor), shape)
    agree(unshuffle(factor), lambda: nn.PixelUnshuffle(factor), shape)


@quick
@given(st.integers(1, 6), st.integers(1, 12), st.booleans())
def test_group_norm_is_torchs(groups: int, channels: int, affine: bool) -> None:
    def rule(shape: tuple[int, ...]) -> Step:
        return group_norm(groups, channels, affine)(shape)

    agree(rule, lambda: nn.GroupNorm(groups, channels, affine=affine), (channels, 4, 3))


def test_resize_gives_the_size_that_it_names() -> None:
    assert resize(3)((4, 8, 6)).shape == (4, 3, 3)
    assert resize((2, 5))((4, 8, 6)).shape == (4, 2, 5)


def test_multiply_adds_are_counted_per_sample() -> None:
    assert conv(3, 8, 3, padding=1)((3, 16, 16)).macs == 16 * 16 * 8 * 3 * 9
    assert conv(4, 8, 3, padding=1, groups=2)((4, 16, 16)).macs == 16 * 16 * 8 * 2 * 9
    assert conv_transpose(8, 4, 4, stride=2, padding=1)((8, 5, 5)).macs == 5 * 5 * 8 * 4 * 16
    assert attention(32)((32, 4, 5)).macs == 4 * 32 * 32 * 20 + 2 * 32 * 20 * 20


rules = st.one_of(
    st.builds(
        lambda kernel, stride, padding, dilation: conv(2, 2, kernel, stride, padding, dilation),
        *[st.integers(1, 3), st.integers(1, 3), st.integers(0, 2), st.integers(1, 2)],
    ),
    st.builds(scale, st.integers(1, 3), st.integers(0, 2)),
    st.builds(lambda kernel: pool(kernel, padding=kernel // 2), st.integers(1, 3)),
    st.just(group_norm(1, 2)),
    st.just(pointwise(2, 4)),
    st.just(same()),
)


@quick
@given(rules, rules, rules)
def test_chaining_is_associative_and_counts_everything(one: Rule, two: Rule, three: Rule) -> None:
    shape = (2, 150, 150)
    flat, nested = chain(one, two, three)(shape), chain(one, chain(two, three))(shape)
    assert flat == nested
    steps = [one(shape)]
    steps.append(two(steps[-1].shape))
    steps.append(three(steps[-1].shape))
    assert flat.shape == steps[-1].shape
    assert flat.parameters == sum(step.parameters for step in steps)
    assert flat.macs == sum(step.macs for step in steps)
    assert flat.notes == tuple(note for step in steps for note in step.notes)


def test_chaining_nothing_is_the_identity() -> None:
    assert chain()((2, 5, 5)) == same()((2, 5, 5))


@quick
@given(rules)
def test_adding_a_path_to_itself_doubles_its_costs(rule: Rule) -> None:
    one, two = rule((2, 20, 20)), add(rule, rule)((2, 20, 20))
    assert (two.shape, two.parameters, two.macs, two.reach) == (one.shape, 2 * one.parameters, 2 * one.macs, one.reach)


def test_added_paths_reach_as_far_as_either() -> None:
    reach = add(conv(2, 2, (5, 1), padding=(2, 0)), conv(2, 2, (1, 3), padding=(0, 1)))((2, 8, 8)).reach
    assert (reach.low, reach.high) == ((Fraction(-2), Fraction(-1)), (Fraction(2), Fraction(1)))
    assert reach.field == (5, 3)


def test_statistics_and_attention_survive_composition() -> None:
    assert chain(conv(4, 4, 3), group_norm(2, 4), same())((4, 8, 8)).reach.statistics
    assert add(chain(group_norm(2, 4), attention(4)), same())((4, 8, 8)).reach.everywhere
    assert not chain(conv(4, 4, 3), pointwise(4, 8))((4, 8, 8)).reach.statistics


def positions_read(module: Callable[[torch.Tensor], torch.Tensor], size: int, output: int) -> list[int]:
    """The inputs of a 1-D signal (1, 2, size) that the output at a position depends on, found by gradients."""
    x = torch.randn(8, 2, size, requires_grad=True)
    (gradient,) = torch.autograd.grad(module(x)[:, :, output].sum(), x)
    return gradient.abs().sum((0, 1)).nonzero().flatten().tolist()


def far_from_the_border(step: Step, size: int) -> list[int]:
    """The outputs whose whole interval lies inside the input."""
    reach = step.reach
    return [
        o
        for o in range(step.shape[-1])
        if reach.stride[-1] * o + reach.low[-1] >= 0 and reach.stride[-1] * o + reach.high[-1] <= size - 1
    ]


chains = st.lists(
    st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(0, 2), st.integers(1, 2)), min_size=1, max_size=3
)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(chains)
def test_the_reach_of_convolutions_is_where_gradients_go(layers: list[tuple[int, int, int, int]]) -> None:
    torch.manual_seed(0)
    size = 60
    step = chain(*[conv(2, 2, *values) for values in layers])((2, size))
    net = nn.Sequential(*[nn.Conv1d(2, 2, *values) for values in layers])
    inside = far_from_the_border(step, size)
    for o in inside[:1] + inside[-1:]:
        read = positions_read(net, size, o)
        origin = step.reach.stride[-1] * o
        assert min(read) - origin == step.reach.low[-1]
        assert max(read) - origin == step.reach.high[-1]


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 2), st.integers(1, 3))
def test_the_reach_of_a_transposed_convolution_holds_its_gradients(
    kernel: int, stride: int, padding: int, dilation: int
) -> None:
    torch.manual_seed(0)
    size = 12
    values: dict[str, Any] = {"kernel_size": kernel, "stride": stride, "padding": padding, "dilation": dilation}
    step = conv_transpose(2, 2, **values)((2, size))
    extremes = reach_by_gradients(nn.ConvTranspose1d(2, 2, **values), step, size)
    assert extremes == (step.reach.low[-1], step.reach.high[-1])


@pytest.mark.parametrize("factor", [1, 2, 3, 4, 5])
@pytest.mark.parametrize(("overlap", "mode"), [(0, "nearest"), (1, "bilinear"), (2, "bicubic")])
def test_the_reach_of_upsampling_is_exact(factor: int, overlap: int, mode: str) -> None:
    size = 9
    step = scale((1, factor), overlap)((2, 1, size))

    def along_one_axis(x: torch.Tensor) -> torch.Tensor:
        upsampled: torch.Tensor = nn.Upsample(scale_factor=(1, factor), mode=mode)(x[:, :, None])
        return upsampled[:, :, 0]

    extremes = reach_by_gradients(along_one_axis, step, size)
    assert extremes == (step.reach.low[-1], step.reach.high[-1])


def reach_by_gradients(
    module: Callable[[torch.Tensor], torch.Tensor], step: Step, size: int
) -> tuple[Fraction, Fraction]:
    """The least and the most of `position read - stride * output` over all outputs far from the border."""
    offsets = [
        position - step.reach.stride[-1] * o
        for o in far_from_the_border(step, size)
        for position in positions_read(module, size, o)
    ]
    return min(offsets), max(offsets)


@pytest.mark.parametrize("factor", [2, 3])
def test_the_reach_of_shuffles(factor: int) -> None:
    assert unshuffle(factor)((1, 12)).reach == Reach((Fraction(factor),), (Fraction(0),), (Fraction(factor - 1),))
    assert chain(unshuffle(factor), shuffle(factor))((1, 12)).reach.field == (2 * factor - 1,)


def test_the_receptive_field_of_a_known_net() -> None:
    # Two VGG stages: 3, 5, then the pooling's 6, then 10 and 14 (Araujo et al., 2019).
    stage = [conv(2, 2, 3, padding=1), same(), conv(2, 2, 3, padding=1), same(), pool(2)]
    assert chain(*stage)((2, 32, 32)).reach.field == (6, 6)
    assert chain(*stage, *stage[:-1])((2, 32, 32)).reach.field == (14, 14)


def test_a_stride_larger_than_the_kernel_is_pointed_out() -> None:
    step = conv(3, 8, 3, stride=4)((3, 16, 16))
    assert step.shape == (8, 4, 4)
    assert [note for note in step.notes if "stride 4 is larger than the kernel 3" in note]
    assert conv(3, 8, 4, stride=4)((3, 16, 16)).notes == ()


def test_an_input_that_is_not_covered_is_pointed_out() -> None:
    step = conv(3, 8, 4, stride=4)((3, 18, 18))
    assert step.shape == (8, 4, 4)
    assert [note for note in step.notes if "18x18 is not covered: the last 2 rows" in note]
    assert pool(2)((3, 7, 7)).notes != ()
    assert conv(3, 8, 3, stride=2, padding=1)((3, 16, 16)).notes == ()


def test_a_norm_of_single_numbers_is_pointed_out() -> None:
    assert group_norm(4, 4)((4, 1, 1)).notes != ()
    assert group_norm(4, 4)((4, 2, 1)).notes == group_norm(2, 4)((4, 1, 1)).notes == ()


@pytest.mark.parametrize(
    ("rule", "shape", "message"),
    [
        (conv(3, 8, 3), (4, 8, 8), "takes 3 channels, but 4 come in"),
        (conv(3, 8, 9), (3, 8, 8), "the window of 9x9 does not fit the input of 8x8"),
        (conv(3, 8, 3, padding=8, padding_mode="reflect"), (3, 8, 8), "reflect padding of 8 does not fit"),
        (conv_transpose(3, 8, 3, padding=9), (3, 2, 2), "the padding cuts the whole output away"),
        (group_norm(2, 4), (6, 8, 8), "takes 4 channels, but 6 come in"),
        (pointwise(4), (6, 8, 8), "takes 4 channels, but 6 come in"),
        (attention(4), (6, 8, 8), "takes 4 channels, but 6 come in"),
        (unshuffle(3), (2, 8, 9), "takes sizes that 3 divides, but 8x9 comes in"),
        (shuffle(2), (6, 8, 8), "takes a multiple of 4 channels, but 6 come in"),
        (add(conv(2, 2, 3), same()), (2, 8, 8), "adds 2x6x6 to 2x8x8"),
        (chain(conv(2, 4, 3), conv(2, 2, 3)), (2, 8, 8), "takes 2 channels, but 4 come in"),
    ],
)
def test_an_input_that_does_not_fit_is_an_error(rule: Rule, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ShapeError, match=message) as error:
        rule(shape)
    channels = message.startswith("takes") and "multiple" not in message and "sizes" not in message
    assert error.value.expected == (int(message.split()[1]) if channels else None)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: conv(4, 6, 3, groups=4), "groups 4 does not divide out-channels 6"),
        (lambda: conv_transpose(3, 6, 3, groups=2), "groups 2 does not divide in-channels 3"),
        (lambda: group_norm(3, 8), "num-groups 3 does not divide num-channels 8"),
        (lambda: conv_transpose(2, 2, 3, output_padding=1)((2, 8, 8)), "output-padding 1 wants to be smaller"),
        (lambda: pool(3, padding=2)((2, 8, 8)), "padding 2 is more than half of the kernel 3"),
        (lambda: conv(2, 2, (3, 3, 3))((2, 8, 8)), "the size 3x3x3 has 3 axes, the data has 2"),
    ],
)
def test_values_that_do_not_go_together_are_an_error(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_one_number_stands_for_every_axis() -> None:
    assert per_axis(3, 2) == (3, 3)
    assert math.prod(per_axis((2, 5), 2)) == 10
