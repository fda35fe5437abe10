"""Convolutions and the blocks made of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from flexvae_cli.api import Count, Padding, Rule, Size, add, chain, conv, conv_transpose, layer, pointwise, same

if TYPE_CHECKING:
    from torch import nn


@layer("CT2d", dims=2, trace=conv_transpose)
def conv_transpose2d(
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
    """2-D transposed convolution: learned upsampling by the stride.

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
    """
    from torch import nn

    return nn.ConvTranspose2d(
        in_channels, out_channels, kernel_size, stride, padding, output_padding, groups, bias, dilation
    )


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


@layer("DSC2d", dims=2, trace=depthwise_separable_rule)
def depthwise_separable_conv2d(
    in_channels: Count,
    out_channels: Count,
    kernel_size: Size,
    stride: Size = 1,
    padding: Padding = 0,
    *,
    dilation: Size = 1,
    bias: bool = True,
) -> nn.Module:
    """Depthwise separable convolution: channel by channel, then 1x1 across (Chollet, 2016, arXiv:1610.02357).

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
    """
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(in_channels, in_channels, kernel_size, stride, padding, dilation, groups=in_channels, bias=bias),
        nn.Conv2d(in_channels, out_channels, 1, bias=bias),
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


@layer("CNX", dims=2, trace=convnext_rule)
def convnext_block(channels: Count, *, kernel_size: Literal[3, 5, 7, 9, 11] = 7, expansion: Count = 4) -> nn.Module:
    """ConvNeXt block: depthwise convolution, norm, wide 1x1 convolutions (Liu et al., 2022, arXiv:2201.03545).

    x + scale * project(gelu(expand(norm(depthwise(x))))): a depthwise convolution, layer normalisation over channels,
    1x1 convolutions up and down, and a learned scale per channel that starts at 1e-6.

    Args:
        channels: channels that come in and go out.
        kernel_size: height and width of the depthwise window, in pixels; odd, so that the shape stays.
        expansion: how many times more channels the middle has.

    Examples:
        CNX_8: 8x12x10 -> 8x12x10
        CNX_4_kernel-size=3_expansion=2: 4x6x6 -> 4x6x6
    """
    from flexvae_layers_extra.blocks import ConvNeXtBlock

    return ConvNeXtBlock(channels, kernel_size, expansion)


LAYERS = [conv_transpose2d, depthwise_separable_conv2d, convnext_block]
