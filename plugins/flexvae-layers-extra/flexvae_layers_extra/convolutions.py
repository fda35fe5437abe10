"""Convolutions and the blocks made of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from flexvae_cli.api import (
    Count,
    Padding,
    Rule,
    Size,
    add,
    chain,
    conv,
    conv_transpose,
    layer_family,
    mirrors,
    pointwise,
    same,
)

if TYPE_CHECKING:
    from torch import nn


@layer_family({2: "CT2d", 3: "CT3d"}, trace=conv_transpose, mirror=mirrors.transposed_convolution)
def conv_transposes(
    axes: int,
    in_channels: Count,
    out_channels: Count,
    kernel_size: Size,
    stride: Size = 1,
    padding: Padding = 0,
    output_padding: Padding = 0,
    *,
    dilation: Size = 1,
    groups: Count = 1,
    bias: bool = True,
) -> nn.Module:
    """N-D transposed convolution: learned upsampling by the stride.

    Args:
        in_channels: channels that come in.
        out_channels: channels that go out.
        kernel_size: height and width that one input pixel spreads to.
        stride: output pixels from one input pixel to the next.
        padding: pixels cut from every side of the output.
        output_padding: rows and columns added at the output's lower right; less than stride or dilation.
        dilation: output pixels from one tap of the kernel to the next.
        groups: blocks of channels that are convolved by themselves; divides both channel counts.
        bias: whether a learned constant is added to each output channel.

    Examples:
        CT2d_8_4_4_2_1: 8x5x6 -> 4x10x12
        CT2d_4_8_3_2_1_1: 4x5x5 -> 8x10x10
        CT2d_4_6_3x2_2x1_1x0_dilation=2_groups=2_bias=false: 4x6x5 -> 6x13x7
        CT3d_4_2_4_2_1: 4x2x3x4 -> 2x4x6x8
        CT3d_2_3_4x4x1_2x2x1_1x1x0: 2x3x2x4 -> 3x6x4x4
    """
    from torch import nn

    kinds = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
    return kinds[axes](in_channels, out_channels, kernel_size, stride, padding, output_padding, groups, bias, dilation)


def depthwise_separable_rule(
    in_channels: int,
    out_channels: int,
    kernel_size: Size,
    stride: Size,
    padding: Padding,
    dilation: Size,
    bias: bool,
) -> Rule:
    """A convolution of each channel by itself, then a 1x1 convolution across channels."""
    depthwise = conv(in_channels, in_channels, kernel_size, stride, padding, dilation, groups=in_channels, bias=bias)
    return chain(depthwise, conv(in_channels, out_channels, 1, bias=bias))


@layer_family({2: "DSC2d", 1: "DSC1d", 3: "DSC3d"}, trace=depthwise_separable_rule, mirror=mirrors.convolution)
def depthwise_separable_convs(
    axes: int,
    in_channels: Count,
    out_channels: Count,
    kernel_size: Size,
    stride: Size = 1,
    padding: Padding = 0,
    *,
    dilation: Size = 1,
    bias: bool = True,
) -> nn.Module:
    """Depthwise separable N-D convolution: channel by channel, then across (Chollet, 2016, arXiv:1610.02357).

    Args:
        in_channels: channels that come in.
        out_channels: channels that go out.
        kernel_size: height and width of the window of the first convolution, in pixels.
        stride: pixels from one window to the next.
        padding: pixels of zero added on every side.
        dilation: pixels from one tap of the window to the next.
        bias: whether either convolution adds a learned constant to each of its output channels.

    Examples:
        DSC2d_4_8_3_1_1: 4x8x6 -> 8x8x6
        DSC2d_4_6_3x5_2_2x4_dilation=2_bias=false: 4x9x12 -> 6x5x6
        DSC1d_4_8_3_1_1: 4x9 -> 8x9
        DSC3d_2_4_3x3x1_1_1x1x0: 2x4x5x3 -> 4x4x5x3
    """
    from torch import nn

    from flexvae_layers_extra.blocks import CONVOLUTIONS

    convolution = CONVOLUTIONS[axes]
    return nn.Sequential(
        convolution(in_channels, in_channels, kernel_size, stride, padding, dilation, groups=in_channels, bias=bias),
        convolution(in_channels, out_channels, 1, bias=bias),
    )


def convnext_rule(channels: int, kernel_size: int, expansion: int) -> Rule:
    """Depthwise convolution, norm over channels, 1x1 up, 1x1 down, layer scale; plus the input."""
    body = chain(
        conv(channels, channels, kernel_size, padding=kernel_size // 2, groups=channels),
        pointwise(channels, parameters=2 * channels),
        conv(channels, expansion * channels, 1),
        conv(expansion * channels, channels, 1),
        pointwise(channels, parameters=channels),
    )
    return add(body, same())


@layer_family({2: "CNX", 1: "CNX1d", 3: "CNX3d"}, trace=convnext_rule, mirror=mirrors.itself)
def convnext_blocks(
    axes: int, channels: Count, *, kernel_size: Literal[3, 5, 7, 9, 11] = 7, expansion: Count = 4
) -> nn.Module:
    """ConvNeXt block: depthwise N-D convolution, norm, two maps of channels (Liu et al., 2022, arXiv:2201.03545).

    x + scale * project(gelu(expand(norm(depthwise(x))))): a depthwise convolution, layer normalisation over channels,
    1x1 convolutions up and down, and a learned scale per channel that starts at 1e-6.

    Args:
        channels: channels that come in and go out.
        kernel_size: height and width of the depthwise window, in pixels; odd, so that the shape stays.
        expansion: how many times more channels the middle has.

    Examples:
        CNX_8: 8x12x10 -> 8x12x10
        CNX_4_kernel-size=3_expansion=2: 4x6x6 -> 4x6x6
        CNX1d_4: 4x12 -> 4x12
        CNX3d_4_kernel-size=3: 4x4x5x4 -> 4x4x5x4
    """
    from flexvae_layers_extra.blocks import ConvNeXtBlock

    return ConvNeXtBlock(channels, kernel_size, expansion, axes)


LAYERS = [*conv_transposes, *depthwise_separable_convs, *convnext_blocks]
