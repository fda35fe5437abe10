"""Pooling, and other ways to fewer or more positions."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from flexvae_cli.api import (
    Count,
    Padding,
    Rule,
    Shape,
    ShapeError,
    Size,
    Step,
    layer,
    mirrors,
    pool,
    resize,
    same,
    scale,
    shuffle,
    unshuffle,
)

if TYPE_CHECKING:
    from torch import nn


@layer("AvgP", trace=pool, mirror=mirrors.pooling)
def average_pool(
    kernel_size: Size, stride: Size | None = None, padding: Padding = 0, *, count_include_pad: bool = True
) -> nn.Module:
    """Average pooling, over as many axes as the data has.

    Args:
        kernel_size: height and width of the window, in pixels.
        stride: pixels from one window to the next; by default the kernel size.
        padding: pixels of zero added on every side; at most half of the kernel.
        count_include_pad: whether the added zeros count in the average.

    Examples:
        AvgP_2: 3x8x6 -> 3x4x3
        AvgP_3x5_2_1x2_count-include-pad=false: 3x8x8 -> 3x4x4
        AvgP_2: 3x9 -> 3x4
        AvgP_2x2x1: 3x4x6x5 -> 3x2x3x5
    """
    from flexvae_layers_extra.blocks import AveragePool

    return AveragePool(kernel_size, stride, padding, count_include_pad)


any_size = mirrors.impossible(
    "it gives one size whatever comes in; upsample to the size of your samples, as with UpS_4"
)


@layer("AdAvgP", trace=resize, mirror=any_size)
def adaptive_average_pool(output_size: Size) -> nn.Module:
    """Average pooling to a fixed size, whatever size comes in.

    Args:
        output_size: height and width that go out, in pixels.

    Examples:
        AdAvgP_2: 3x8x6 -> 3x2x2
        AdAvgP_3x5: 3x7x12 -> 3x3x5
        AdAvgP_3: 2x8 -> 2x3
        AdAvgP_2x3x1: 2x4x6x5 -> 2x2x3x1
    """
    from flexvae_layers_extra.blocks import AdaptivePool

    return AdaptivePool("mean", output_size)


@layer("AdMaxP", trace=resize, mirror=any_size)
def adaptive_max_pool(output_size: Size) -> nn.Module:
    """Max pooling to a fixed size, whatever size comes in.

    Args:
        output_size: height and width that go out, in pixels.

    Examples:
        AdMaxP_2: 3x8x6 -> 3x2x2
        AdMaxP_3x5: 3x7x12 -> 3x3x5
        AdMaxP_3: 2x8 -> 2x3
        AdMaxP_2x3x1: 2x4x6x5 -> 2x2x3x1
    """
    from flexvae_layers_extra.blocks import AdaptivePool

    return AdaptivePool("max", output_size)


@layer(
    "PS",
    trace=lambda upscale_factor: shuffle(upscale_factor),
    mirror=mirrors.inverse("PU", downscale_factor="upscale_factor"),
)
def pixel_shuffle(upscale_factor: Count) -> nn.Module:
    """Channels to space: (c * r^2, h, w) -> (c, h * r, w * r) (Shi et al., 2016, arXiv:1609.05158).

    Data of one or three axes goes the same way, from c * r or c * r^3 channels.

    Args:
        upscale_factor: how many times larger every axis becomes (r).

    Examples:
        PS_2: 8x4x3 -> 2x8x6
        PS_3: 6x5 -> 2x15
        PS_2: 8x2x3x4 -> 1x4x6x8
    """
    from flexvae_layers_extra.blocks import Shuffle

    return Shuffle(upscale_factor)


@layer(
    "PU",
    trace=lambda downscale_factor: unshuffle(downscale_factor),
    mirror=mirrors.inverse("PS", upscale_factor="downscale_factor"),
)
def pixel_unshuffle(downscale_factor: Count) -> nn.Module:
    """Space to channels: (c, h * r, w * r) -> (c * r^2, h, w), the inverse of PS.

    Data of one or three axes goes the same way, to c * r or c * r^3 channels.

    Args:
        downscale_factor: how many times smaller every axis becomes (r); divides their sizes.

    Examples:
        PU_2: 2x8x6 -> 8x4x3
        PU_3: 2x15 -> 6x5
        PU_2: 1x4x6x8 -> 8x2x3x4
    """
    from flexvae_layers_extra.blocks import Unshuffle

    return Unshuffle(downscale_factor)


@layer("UpB", dims=2, trace=lambda scale_factor: scale(scale_factor, overlap=1), mirror=mirrors.upsampling)
def upsample_bilinear(scale_factor: Count) -> nn.Module:
    """Bilinear upsampling by a whole factor; pixels are areas, their corners are not aligned.

    Args:
        scale_factor: how many times larger both axes become.

    Examples:
        UpB_2: 3x6x5 -> 3x12x10
        UpB_3: 3x4x5 -> 3x12x15
    """
    from torch import nn

    return nn.Upsample(scale_factor=scale_factor, mode="bilinear", align_corners=False)


@layer("UpL", trace=lambda scale_factor: scale(scale_factor, overlap=1), mirror=mirrors.upsampling)
def upsample_linear(scale_factor: Size) -> nn.Module:
    """Linear upsampling by a whole factor, over as many axes as the data has; in 2-D it is UpB.

    Args:
        scale_factor: how many times larger every axis becomes, or each.

    Examples:
        UpL_2: 3x6 -> 3x12
        UpL_2x3: 3x6x5 -> 3x12x15
        UpL_1x2x2: 2x3x6x5 -> 2x3x12x10
    """
    from flexvae_layers_extra.blocks import LinearUpsample

    return LinearUpsample(scale_factor)


@layer("UpC", dims=2, trace=lambda scale_factor: scale(scale_factor, overlap=2), mirror=mirrors.upsampling)
def upsample_bicubic(scale_factor: Count) -> nn.Module:
    """Bicubic upsampling by a whole factor; pixels are areas, their corners are not aligned.

    torch has no deterministic gradient of it on CUDA.

    Args:
        scale_factor: how many times larger both axes become.

    Examples:
        UpC_2: 3x8x7 -> 3x16x14
        UpC_3: 3x6x7 -> 3x18x21
    """
    from torch import nn

    return nn.Upsample(scale_factor=scale_factor, mode="bicubic", align_corners=False)


def channel_mean_rule(group_size: int) -> Rule:
    """Fewer channels, every position by itself."""

    def rule(shape: Shape) -> Step:
        if shape[0] % group_size:
            raise ShapeError(f"takes a multiple of {group_size} channels, but {shape[0]} come in")
        return replace(same()(shape), shape=(shape[0] // group_size, *shape[1:]))

    return rule


@layer("ChMean", trace=channel_mean_rule, mirror=mirrors.inverse("ChRep", copies="group_size"))
def channel_mean(group_size: Count) -> nn.Module:
    """Mean of each group of neighbouring channels: (c * g, ...) -> (c, ...), the shortcut of DC-AE's downsampling.

    Behind `PU` it is a shortcut without parameters past a convolution that downsamples (Chen et al., 2024,
    arXiv:2410.10733).

    Args:
        group_size: channels that become one (g); divides those that come in.

    Examples:
        ChMean_2: 8x4x3 -> 4x4x3
        ChMean_3: 6x10 -> 2x10
    """
    from flexvae_layers_extra.blocks import ChannelMean

    return ChannelMean(group_size)


def channel_repeat_rule(copies: int) -> Rule:
    """More channels, every position by itself."""
    return lambda shape: replace(same()(shape), shape=(shape[0] * copies, *shape[1:]))


@layer("ChRep", trace=channel_repeat_rule, mirror=mirrors.inverse("ChMean", group_size="copies"))
def channel_repeat(copies: Count) -> nn.Module:
    """Every channel several times in a row: (c, ...) -> (c * n, ...), the shortcut of DC-AE's upsampling.

    In front of `PS` it is a shortcut without parameters past a convolution that upsamples (Chen et al., 2024,
    arXiv:2410.10733).

    Args:
        copies: how often each channel goes out (n).

    Examples:
        ChRep_2: 4x4x3 -> 8x4x3
        ChRep_3: 2x10 -> 6x10
    """
    from flexvae_layers_extra.blocks import ChannelRepeat

    return ChannelRepeat(copies)


LAYERS = [
    average_pool,
    adaptive_average_pool,
    adaptive_max_pool,
    pixel_shuffle,
    pixel_unshuffle,
    upsample_bilinear,
    upsample_linear,
    upsample_bicubic,
    channel_mean,
    channel_repeat,
]
