"""Transformer blocks over positions. Patches come from a convolution whose stride is its kernel: `C2d_3_384_16_16`."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated

from flexvae_cli.api import (
    Count,
    Range,
    Reach,
    Rule,
    Shape,
    ShapeError,
    Step,
    add,
    attention,
    chain,
    conv,
    layer,
    mirrors,
    pointwise,
    same,
)

if TYPE_CHECKING:
    from torch import nn

Epsilon = Annotated[float, Range(0)]
FromZero = Annotated[int, Range(0)]


def mixed_then_widened(channels: int, num_heads: int, expansion: int, mix: Rule) -> Rule:
    """x + mix(norm(x)), then x + narrow(gelu(widen(norm(x))))."""
    if channels % num_heads:
        raise ValueError(f"num-heads {num_heads} does not divide channels {channels}")
    norm, wide = pointwise(channels, 2 * channels), expansion * channels
    widened = chain(norm, conv(channels, wide, 1), conv(wide, channels, 1))
    return chain(add(chain(norm, mix), same()), add(widened, same()))


def transformer_rule(channels: int, num_heads: int, expansion: int) -> Rule:
    """Attention over all positions, then two maps of each position."""
    return mixed_then_widened(channels, num_heads, expansion, attention(channels))


@layer("ViT", trace=transformer_rule, mirror=mirrors.itself)
def transformer_block(channels: Count, num_heads: Count, *, expansion: Count = 4, eps: Epsilon = 1e-6) -> nn.Module:
    """Transformer block: attention over all positions, then a GELU net on each (Dosovitskiy et al., 2020).

    x + attention(norm(x)), then x + narrow(gelu(widen(norm(x)))), with layer norms over channels and biased maps
    (arXiv:2010.11929).
    Positions are told apart by what they hold; `SinPos` in front of the first block says where they are.

    Args:
        channels: channels that come in and go out.
        num_heads: heads that the channels are cut into; divides them.
        expansion: how many times more channels the net on each position has.
        eps: added to the variance of either norm.

    Examples:
        ViT_8_2: 8x4x3 -> 8x4x3
        ViT_6_3_expansion=2_eps=1e-05: 6x10 -> 6x10
    """
    from flexvae_layers_extra.transformer_blocks import GlobalAttention, TransformerBlock

    return TransformerBlock(channels, expansion, eps, GlobalAttention(channels, num_heads))


def window_attention(channels: int, num_heads: int, window_size: int) -> Rule:
    """Attention within windows, with a learned bias for each head and offset."""

    def rule(shape: Shape) -> Step:
        if any(n % window_size for n in shape[1:]):
            raise ShapeError(f"takes sizes that {window_size} divides, but {shape[1]}x{shape[2]} comes in")
        positions, others = math.prod(shape[1:]), window_size**2
        macs = 4 * channels * channels * positions + 2 * channels * positions * others
        biases = num_heads * (2 * window_size - 1) ** 2
        # Which part of its window a position sees depends on where it stands: at most all the others' width either way.
        most = Fraction(2 * window_size - 1, 2)
        reach = Reach((Fraction(1),) * 2, (-most,) * 2, (most,) * 2)
        return Step(shape, 4 * (channels * channels + channels) + biases, macs, reach)

    return rule


def swin_rule(channels: int, num_heads: int, window_size: int, shift: int, expansion: int) -> Rule:
    """Attention within windows, then two maps of each position."""
    if shift >= window_size:
        raise ValueError(f"shift {shift} wants to be smaller than window-size {window_size}")
    return mixed_then_widened(channels, num_heads, expansion, window_attention(channels, num_heads, window_size))


@layer("Swin", dims=2, trace=swin_rule, mirror=mirrors.itself)
def swin_block(
    channels: Count,
    num_heads: Count,
    *,
    window_size: Count = 8,
    shift: FromZero = 0,
    expansion: Count = 4,
    eps: Epsilon = 1e-5,
) -> nn.Module:
    """Transformer block with attention within square windows, as in Swin (Liu et al., 2021, arXiv:2103.14030).

    As `ViT`, but a position attends to its window alone, with a learned bias for each head and offset. Blocks come in
    pairs, the second with a `shift` of half of the window: `["Swin_64_2", "Swin_64_2_shift=4"]`. A shifted window
    that would join opposite borders is cut there, and an axis that is a single window is not shifted.

    Args:
        channels: channels that come in and go out.
        num_heads: heads that the channels are cut into; divides them.
        window_size: height and width of a window, in positions; divides those of the data.
        shift: positions that the windows are moved by, less than their size.
        expansion: how many times more channels the net on each position has.
        eps: added to the variance of either norm.

    Examples:
        Swin_8_2_window-size=4: 8x8x12 -> 8x8x12
        Swin_6_3_window-size=3_shift=1_expansion=2: 6x6x9 -> 6x6x9
    """
    from flexvae_layers_extra.transformer_blocks import TransformerBlock, WindowAttention

    return TransformerBlock(channels, expansion, eps, WindowAttention(channels, num_heads, window_size, shift))


def positions_rule(channels: int) -> Rule:
    """The shape stays, every position by itself."""

    def rule(shape: Shape) -> Step:
        pairs = 2 * (len(shape) - 1)
        if channels % pairs:
            raise ValueError(f"channels {channels} want to be a multiple of {pairs}, a sine and a cosine for each axis")
        return pointwise(channels)(shape)

    return rule


@layer("SinPos", trace=positions_rule, mirror=mirrors.itself)
def sinusoidal_positions(channels: Count) -> nn.Module:
    """x plus sines and cosines of where each position is, which are fixed and go with any size (arXiv:1706.03762).

    Every axis has its share of the channels: first sines, then cosines, of wavelengths from 2 pi positions up.

    Args:
        channels: channels that come in and go out; a multiple of twice the number of axes.

    Examples:
        SinPos_8: 8x4x6 -> 8x4x6
        SinPos_6: 6x10 -> 6x10
        SinPos_12: 12x2x3x4 -> 12x2x3x4
    """
    from flexvae_layers_extra.transformer_blocks import SinusoidalPositions

    return SinusoidalPositions(channels)


LAYERS = [transformer_block, swin_block, sinusoidal_positions]
