"""Convolutions for data of one axis, such as sound: torch's, and causal or with normalised weights on request."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

from flexvae_cli.api import Count, Range, Rule, Shape, Step, chain, conv, conv_transpose, layer, mirrors, pointwise

if TYPE_CHECKING:
    from torch import nn

FromZero = Annotated[int, Range(0)]


def conv1d_rule(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    stride: int,
    padding: int,
    dilation: int,
    groups: int,
    bias: bool,
    causal: bool,
    weight_norm: bool,
) -> Rule:
    """A convolution, behind zeros in front of a causal one."""
    lead = causal_lead(kernel_size, stride, padding, dilation) if causal else 0
    plain = conv(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias)

    def rule(shape: Shape) -> Step:
        return normed(chain(moved(lead), plain)(shape), out_channels * weight_norm)

    return rule


def causal_lead(kernel_size: int, stride: int, padding: int, dilation: int) -> int:
    """The zeros in front of a causal convolution, as many as make `stride` inputs one output."""
    if padding:
        raise ValueError("a causal convolution pads by itself; leave padding out")
    lead = dilation * (kernel_size - 1) + 1 - stride
    if lead < 0:
        raise ValueError(f"a causal convolution wants a window of at least the stride, {stride}")
    return lead


def moved(lead: int) -> Rule:
    """The input behind `lead` zeros."""

    def rule(shape: Shape) -> Step:
        step = pointwise()(shape)
        low = tuple(n - lead for n in step.reach.low)
        return replace(step, shape=(shape[0], shape[1] + lead), reach=replace(step.reach, low=low, high=low))

    return rule


def normed(step: Step, lengths: int) -> Step:
    """Weight normalisation learns a length for each filter beside its direction."""
    return replace(step, parameters=step.parameters + lengths)


@layer("C1d", dims=1, trace=conv1d_rule, mirror=mirrors.convolution)
def conv1d(
    in_channels: Count,
    out_channels: Count,
    kernel_size: Count,
    stride: Count = 1,
    padding: FromZero = 0,
    *,
    dilation: Count = 1,
    groups: Count = 1,
    bias: bool = True,
    causal: bool = False,
    weight_norm: bool = False,
) -> nn.Module:
    """1-D convolution, on request causal or with normalised weights.

    A causal one pads with zeros in front alone, `dilation * (kernel-size - 1) + 1 - stride` of them: an output knows
    nothing of what comes after the last of its `stride` inputs, and n inputs give n / stride outputs. Weight
    normalisation learns length and direction of each filter by themselves (arXiv:1602.07868).

    Args:
        in_channels: channels that come in.
        out_channels: channels that go out.
        kernel_size: length of the window.
        stride: positions from one window to the next.
        padding: zeros added on both sides; none where causal.
        dilation: positions from one tap of the window to the next.
        groups: blocks of channels that are convolved by themselves; divides both channel counts.
        bias: whether a learned constant is added to each output channel.
        causal: whether an output sees nothing that comes after it.
        weight_norm: whether each filter is a learned length times a direction.

    Examples:
        C1d_2_4_7_1_3: 2x20 -> 4x20
        C1d_2_4_4_2_causal=true_weight-norm=true: 2x20 -> 4x10
        C1d_4_6_3_dilation=3_groups=2_bias=false_causal=true: 4x16 -> 6x16
    """
    from torch import nn

    from flexvae_layers_core.sequence_blocks import CausalConv1d, normalised

    plain = nn.Conv1d(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias)
    module = normalised(plain) if weight_norm else plain
    return CausalConv1d(causal_lead(kernel_size, stride, padding, dilation), module) if causal else module


def conv_transpose1d_rule(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    stride: int,
    padding: int,
    output_padding: int,
    groups: int,
    bias: bool,
    causal: bool,
    weight_norm: bool,
) -> Rule:
    """A transposed convolution, of which a causal one cuts the end off."""
    tail = causal_tail(kernel_size, stride, padding + output_padding) if causal else 0
    plain = conv_transpose(
        in_channels, out_channels, kernel_size, stride, padding, output_padding, groups=groups, bias=bias
    )

    def rule(shape: Shape) -> Step:
        step = plain(shape)
        return normed(replace(step, shape=(out_channels, step.shape[1] - tail)), in_channels * weight_norm)

    return rule


def causal_tail(kernel_size: int, stride: int, padding: int) -> int:
    """What a causal transposed convolution cuts off its end, so that one input makes `stride` outputs."""
    if padding:
        raise ValueError("a causal convolution cuts by itself; leave padding and output-padding out")
    if kernel_size < stride:
        raise ValueError(f"a causal convolution wants a window of at least the stride, {stride}")
    return kernel_size - stride


@layer("CT1d", dims=1, trace=conv_transpose1d_rule, mirror=mirrors.transposed_convolution)
def conv_transpose1d(
    in_channels: Count,
    out_channels: Count,
    kernel_size: Count,
    stride: Count = 1,
    padding: FromZero = 0,
    output_padding: FromZero = 0,
    *,
    groups: Count = 1,
    bias: bool = True,
    causal: bool = False,
    weight_norm: bool = False,
) -> nn.Module:
    """1-D transposed convolution: learned upsampling by the stride, on request causal or with normalised weights.

    Args:
        in_channels: channels that come in.
        out_channels: channels that go out.
        kernel_size: outputs that one input spreads to.
        stride: outputs from one input to the next.
        padding: outputs cut from both ends; none where causal.
        output_padding: outputs added at the end; less than the stride, none where causal.
        groups: blocks of channels that are convolved by themselves; divides both channel counts.
        bias: whether a learned constant is added to each output channel.
        causal: whether an output sees nothing that comes after it; n inputs then give n * stride outputs.
        weight_norm: whether the filter of each input channel is a learned length times a direction.

    Examples:
        CT1d_4_2_4_2_1: 4x10 -> 2x20
        CT1d_4_2_6_3_causal=true_weight-norm=true: 4x6 -> 2x18
        CT1d_4_6_3_2_1_1_groups=2_bias=false: 4x8 -> 6x16
    """
    from torch import nn

    from flexvae_layers_core.sequence_blocks import CausalTranspose1d, normalised

    plain = nn.ConvTranspose1d(
        in_channels, out_channels, kernel_size, stride, padding, output_padding, groups=groups, bias=bias
    )
    module = normalised(plain) if weight_norm else plain
    return CausalTranspose1d(causal_tail(kernel_size, stride, padding + output_padding), module) if causal else module


LAYERS = [conv1d, conv_transpose1d]
