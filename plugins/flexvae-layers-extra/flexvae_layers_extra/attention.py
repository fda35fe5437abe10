"""Attention over positions."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated

from flexvae_cli.api import (
    Count,
    Ints,
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
    group_norm,
    layer,
    layer_family,
    mirrors,
    same,
)

if TYPE_CHECKING:
    from torch import nn

Epsilon = Annotated[float, Range(0)]


def attention_block_rule(channels: int, num_heads: int, num_groups: int) -> Rule:
    """Group norm and attention, plus the input. Heads cut the work up, they do not change its amount."""
    if channels % num_heads:
        raise ValueError(f"num-heads {num_heads} does not divide channels {channels}")
    return add(chain(group_norm(num_groups, channels), attention(channels)), same())


@layer("AB", trace=attention_block_rule, mirror=mirrors.itself)
def attention_block(channels: Count, *, num_heads: Count = 1, num_groups: Count = 32, eps: Epsilon = 1e-6) -> nn.Module:
    """Attention block of latent diffusion's autoencoders: the input plus self-attention over all positions of its norm.

    This is `VAEA` with any number of heads and groups, and with the eps of the published weights (Rombach et al., 2021,
    arXiv:2112.10752). Query, key, value and output are biased maps of channels to channels.

    Args:
        channels: channels that come in and go out, a multiple of heads and groups.
        num_heads: heads that the channels are cut into.
        num_groups: groups of the norm.
        eps: added to the variance of the norm.

    Examples:
        AB_32: 32x4x6 -> 32x4x6
        AB_8_num-heads=2_num-groups=4_eps=1e-05: 8x12 -> 8x12
    """
    from flexvae_layers_extra.attention_blocks import AttentionBlock

    return AttentionBlock(channels, num_heads, num_groups, eps)


def linear_attention_rule(channels: int, head_dim: int, kernel_sizes: Shape | None) -> Rule:
    """Projections, their surroundings at every scale, and two small matrix products per head."""
    if channels % head_dim:
        raise ValueError(f"head-dim {head_dim} does not divide channels {channels}")
    if any(k % 2 == 0 for k in kernel_sizes or ()):
        raise ValueError("kernel-sizes wants odd numbers, so that the shape stays")
    copies, triple = 1 + len(kernel_sizes or ()), 3 * channels
    surroundings = [
        chain(
            conv(triple, triple, k, padding=k // 2, groups=triple, bias=False),
            conv(triple, triple, 1, groups=triple // head_dim, bias=False),
        )
        for k in kernel_sizes or ()
    ]

    def rule(shape: Shape) -> Step:
        if shape[0] != channels:
            raise ShapeError(f"takes {channels} channels, but {shape[0]} come in", expected=channels)
        space = shape[1:]
        steps = [conv(channels, triple, 1, bias=False)(shape)]
        steps += [each((triple, *space)) for each in surroundings]
        steps += [conv(copies * channels, channels, 1, bias=False)((copies * channels, *space))]
        products = 2 * copies * channels * (head_dim + 1) * math.prod(space)
        local = steps[0].reach
        return Step(
            shape,
            sum(step.parameters for step in steps),
            sum(step.macs for step in steps) + products,
            Reach(local.stride, local.low, local.high, everywhere=True),
        )

    return rule


@layer_family({2: "LinA", 1: "LinA1d", 3: "LinA3d"}, trace=linear_attention_rule, mirror=mirrors.itself)
def linear_attentions(
    axes: int, channels: Count, *, head_dim: Count = 32, kernel_sizes: Ints | None = None, eps: Epsilon = 1e-15
) -> nn.Module:
    """Linear attention of EfficientViT: weights relu(query) . relu(key), so the cost grows with positions, not squared.

    Queries, keys and values are attended to as they are, and once more for every size in `kernel-sizes`, from a
    depthwise N-D convolution of that size and a convolution of size 1 within each head. None of the maps has a bias;
    norm and shortcut are up to the structure (Cai et al., 2022, arXiv:2205.14756).

    Args:
        channels: channels that come in and go out.
        head_dim: channels of a head; divides the channels.
        kernel_sizes: odd sizes of the surroundings, in pixels; none by default.
        eps: added to the sum of the weights.

    Examples:
        LinA_8_head-dim=4: 8x4x6 -> 8x4x6
        LinA_8_head-dim=8_kernel-sizes=3.5_eps=1e-06: 8x6x5 -> 8x6x5
        LinA1d_8_head-dim=4_kernel-sizes=5: 8x12 -> 8x12
        LinA3d_8_head-dim=4_kernel-sizes=3: 8x3x4x2 -> 8x3x4x2
    """
    from flexvae_layers_extra.attention_blocks import LinearAttention

    return LinearAttention(channels, head_dim, kernel_sizes or (), eps, axes)


def squeeze_excitation_rule(channels: int, reduction: int) -> Rule:
    """Two biased maps of the channels' means."""
    hidden = max(1, channels // reduction)

    def rule(shape: Shape) -> Step:
        if shape[0] != channels:
            raise ShapeError(f"takes {channels} channels, but {shape[0]} come in", expected=channels)
        reach = same()(shape).reach
        everywhere = Reach(reach.stride, reach.low, reach.high, everywhere=True)
        return Step(shape, 2 * channels * hidden + hidden + channels, 2 * channels * hidden, everywhere)

    return rule


@layer("SE", trace=squeeze_excitation_rule, mirror=mirrors.itself)
def squeeze_excitation(channels: Count, *, reduction: Count = 16) -> nn.Module:
    """Squeeze and excitation: channels times gates that all their means decide (Hu et al., 2017, arXiv:1709.01507).

    x * sigmoid(expand(relu(reduce(mean of x over its positions)))), with two biased maps.

    Args:
        channels: channels that come in and go out.
        reduction: how many times fewer numbers stand between the maps; at least one does.

    Examples:
        SE_16: 16x8x6 -> 16x8x6
        SE_8_reduction=4: 8x10 -> 8x10
    """
    from flexvae_layers_extra.attention_blocks import SqueezeExcitation

    return SqueezeExcitation(channels, max(1, channels // reduction))


LAYERS = [attention_block, *linear_attentions, squeeze_excitation]
