"""Declares the seven layers, and what stands for them in data of one and three axes.

Importing this module does not import torch; calling a factory does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from flexvae_cli.api import (
    Count,
    LayerSpec,
    Padding,
    Rule,
    Size,
    add,
    attention,
    chain,
    conv,
    group_norm,
    hookimpl,
    layer,
    layer_family,
    mirrors,
    pool,
    same,
    scale,
)
from flexvae_layers_core import sequences

if TYPE_CHECKING:
    from torch import nn

FLEXVAE_API = 1


@layer_family({2: "C2d", 3: "C3d"}, trace=conv, mirror=mirrors.convolution)
def convolutions(
    axes: int,
    in_channels: Count,
    out_channels: Count,
    kernel_size: Size,
    stride: Size = 1,
    padding: Padding = 0,
    *,
    dilation: Size = 1,
    groups: Count = 1,
    bias: bool = True,
    padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
) -> nn.Module:
    """N-D convolution.

    Args:
        in_channels: channels that come in.
        out_channels: channels that go out.
        kernel_size: height and width of the window, in pixels; of a volume depth, height and width, in voxels.
        stride: pixels from one window to the next.
        padding: pixels added on every side.
        dilation: pixels from one tap of the window to the next.
        groups: blocks of channels that are convolved by themselves; divides both channel counts.
        bias: whether a learned constant is added to each output channel.
        padding_mode: what the added pixels hold.

    Examples:
        C2d_3_8_3_1_1: 3x16x16 -> 8x16x16
        C2d_8_8_3_4_0: 8x16x16 -> 8x4x4
        C2d_8_16_3x5_2_1x2_groups=4_bias=false_padding-mode=reflect: 8x16x12 -> 16x8x6
        C3d_1_4_3_1_1: 1x8x8x6 -> 4x8x8x6
        C3d_4_6_3x3x1_2x2x1_1x1x0_groups=2_bias=false: 4x8x8x6 -> 6x4x4x6
    """
    from flexvae_layers_core.blocks import CONVOLUTIONS

    return CONVOLUTIONS[axes](
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode
    )  # fmt: skip


conv2d, conv3d = convolutions


def residual_block_rule(in_channels: int, out_channels: int) -> Rule:
    """GroupNorm, SiLU, convolution, twice; the shortcut is a 1x1 convolution where channels change."""
    body = chain(
        group_norm(32, in_channels),
        conv(in_channels, out_channels, 3, padding=1),
        group_norm(32, out_channels),
        conv(out_channels, out_channels, 3, padding=1),
    )
    return add(body, same() if in_channels == out_channels else conv(in_channels, out_channels, 1))


@layer_family({2: "VAERB", 1: "VAERB1d", 3: "VAERB3d"}, trace=residual_block_rule, mirror=mirrors.swapped)
def residual_blocks(axes: int, in_channels: Count, out_channels: Count) -> nn.Module:
    """Residual block: GroupNorm(32), SiLU, N-D convolution of size 3, twice, plus the input.

    The input goes through a convolution of size 1 where the channels differ.

    Args:
        in_channels: channels that come in, a multiple of 32.
        out_channels: channels that go out, a multiple of 32.

    Examples:
        VAERB_32_32: 32x8x8 -> 32x8x8
        VAERB_32_64: 32x8x6 -> 64x8x6
        VAERB1d_32_64: 32x12 -> 64x12
        VAERB3d_32_32: 32x3x5x4 -> 32x3x5x4
    """
    from flexvae_layers_core.blocks import ResidualBlock

    return ResidualBlock(in_channels, out_channels, axes)


residual_block, residual_block1d, residual_block3d = residual_blocks


@layer(
    "VAEA",
    trace=lambda channels: add(chain(group_norm(32, channels), attention(channels)), same()),
    mirror=mirrors.itself,
)
def attention_block(channels: Count) -> nn.Module:
    """Attention block: the input plus one-head self-attention over all positions of GroupNorm(32) of it.

    Args:
        channels: channels that come in and go out, a multiple of 32.

    Examples:
        VAEA_32: 32x4x6 -> 32x4x6
        VAEA_32: 32x9 -> 32x9
        VAEA_32: 32x2x3x4 -> 32x2x3x4
    """
    from flexvae_layers_core.blocks import AttentionBlock

    return AttentionBlock(channels)


@layer("GN", trace=group_norm, mirror=mirrors.in_order)
def group_normalisation(num_groups: Count, num_channels: Count, *, eps: float = 1e-5, affine: bool = True) -> nn.Module:
    """Group normalisation (Wu and He, 2018, arXiv:1803.08494).

    Args:
        num_groups: groups that the channels are cut into; divides them.
        num_channels: channels that come in and go out.
        eps: added to the variance.
        affine: whether a learned scale and shift follow, one of each per channel.

    Examples:
        GN_4_8: 8x6x6 -> 8x6x6
        GN_2_8_eps=1e-06_affine=false: 8x10 -> 8x10
        GN_4_8: 8x4x3x5 -> 8x4x3x5
    """
    from torch import nn

    return nn.GroupNorm(num_groups, num_channels, eps, affine)


@layer("SiLU", trace=same, mirror=mirrors.in_order)
def silu() -> nn.Module:
    """Sigmoid linear unit, x * sigmoid(x) (Elfwing et al., 2018, arXiv:1702.03118).

    Examples:
        SiLU: 4x6x6 -> 4x6x6
    """
    from torch import nn

    return nn.SiLU()


@layer("MaxP", trace=pool, mirror=mirrors.pooling)
def max_pool(kernel_size: Size, stride: Size | None = None, padding: Padding = 0) -> nn.Module:
    """Max pooling, over as many axes as the data has.

    Args:
        kernel_size: height and width of the window, in pixels; one number for every axis, or one for each.
        stride: pixels from one window to the next; by default the kernel size.
        padding: pixels of minus infinity added on every side; at most half of the kernel.

    Examples:
        MaxP_2: 3x8x6 -> 3x4x3
        MaxP_3_2_1: 3x8x8 -> 3x4x4
        MaxP_2: 3x9 -> 3x4
        MaxP_2x2x1: 3x8x6x5 -> 3x4x3x5
    """
    from flexvae_layers_core.blocks import MaxPool

    return MaxPool(kernel_size, stride, padding)


@layer("UpS", trace=scale, mirror=mirrors.upsampling)
def upsample(scale_factor: Size) -> nn.Module:
    """Nearest-neighbour upsampling by a whole factor.

    Args:
        scale_factor: how many times larger every axis becomes, or each.

    Examples:
        UpS_4: 3x2x3 -> 3x8x12
        UpS_2: 3x5 -> 3x10
        UpS_1x2x2: 3x4x3x2 -> 3x4x6x4
    """
    from torch import nn

    return nn.Upsample(scale_factor=scale_factor, mode="nearest")


@hookimpl
def flexvae_layers() -> list[LayerSpec]:
    return [
        *(conv2d, residual_block, attention_block, group_normalisation, silu, max_pool, upsample),
        *(conv3d, residual_block1d, residual_block3d, *sequences.LAYERS),
    ]
