"""Residual blocks of published autoencoders."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

from flexvae_cli.api import Count, Range, Rule, Shape, Step, add, chain, conv, group_norm, layer_family, mirrors, same

if TYPE_CHECKING:
    from torch import nn

Epsilon = Annotated[float, Range(0)]


def shortcut(in_channels: int, out_channels: int, bias: bool = True) -> Rule:
    """The input itself, through a 1x1 convolution where the channels differ."""
    return same() if in_channels == out_channels else conv(in_channels, out_channels, 1, bias=bias)


def residual_block_rule(in_channels: int, out_channels: int, num_groups: int) -> Rule:
    """GroupNorm, SiLU, convolution, twice; plus the shortcut."""
    body = chain(
        group_norm(num_groups, in_channels),
        conv(in_channels, out_channels, 3, padding=1),
        group_norm(num_groups, out_channels),
        conv(out_channels, out_channels, 3, padding=1),
    )
    return add(body, shortcut(in_channels, out_channels))


@layer_family({2: "RB", 1: "RB1d", 3: "RB3d"}, trace=residual_block_rule, mirror=mirrors.swapped)
def residual_blocks(
    axes: int, in_channels: Count, out_channels: Count, *, num_groups: Count = 32, eps: Epsilon = 1e-6
) -> nn.Module:
    """Residual block of latent diffusion's autoencoders: group norm, SiLU, N-D convolution, twice, plus the input.

    The input goes through a convolution of size 1 where the channels differ. This is `VAERB` with any number of groups,
    and with the eps of the published weights (Rombach et al., 2021, arXiv:2112.10752).

    Args:
        in_channels: channels that come in, a multiple of the groups.
        out_channels: channels that go out, a multiple of the groups.
        num_groups: groups of either norm.
        eps: added to the variance of either norm.

    Examples:
        RB_32_32: 32x6x5 -> 32x6x5
        RB_8_12_num-groups=4_eps=1e-05: 8x6x6 -> 12x6x6
        RB1d_8_12_num-groups=4: 8x9 -> 12x9
        RB3d_8_8_num-groups=2: 8x3x4x5 -> 8x3x4x5
    """
    from flexvae_layers_extra.residual_blocks import ResidualBlock

    return ResidualBlock(in_channels, out_channels, num_groups, eps, axes)


def tiny_block_rule(in_channels: int, out_channels: int) -> Rule:
    """Three convolutions, plus the shortcut."""
    body = chain(
        conv(in_channels, out_channels, 3, padding=1),
        conv(out_channels, out_channels, 3, padding=1),
        conv(out_channels, out_channels, 3, padding=1),
    )
    return add(body, shortcut(in_channels, out_channels, bias=False))


@layer_family({2: "TAEB", 1: "TAEB1d", 3: "TAEB3d"}, trace=tiny_block_rule, mirror=mirrors.swapped)
def tiny_blocks(axes: int, in_channels: Count, out_channels: Count) -> nn.Module:
    """Block of the tiny autoencoder TAESD: three N-D convolutions with ReLU between, plus the input, ReLU.

    The input goes through a convolution of size 1 without bias where the channels differ
    (github.com/madebyollin/taesd).

    Args:
        in_channels: channels that come in.
        out_channels: channels that go out.

    Examples:
        TAEB_8_8: 8x9x8 -> 8x9x8
        TAEB_4_6: 4x8x8 -> 6x8x8
        TAEB1d_4_6: 4x12 -> 6x12
        TAEB3d_4_4: 4x4x5x6 -> 4x4x5x6
    """
    from flexvae_layers_extra.residual_blocks import TinyBlock

    return TinyBlock(in_channels, out_channels, axes)


def gated_bottleneck_rule(channels: int, expansion: int) -> Rule:
    """1x1 up, depthwise 3x3, half of the channels gate the others, 1x1 down."""
    wide = 2 * expansion * channels
    inner = chain(conv(channels, wide, 1), conv(wide, wide, 3, padding=1, groups=wide))
    # The gate halves the channels, which no rule says; the convolution behind it is counted with its true width.
    project = conv(expansion * channels, channels, 1, bias=False)

    def rule(shape: Shape) -> Step:
        first = inner(shape)
        second = project((expansion * channels, *first.shape[1:]))
        return replace(
            second,
            parameters=first.parameters + second.parameters,
            macs=first.macs + second.macs,
            reach=first.reach.then(second.reach),
        )

    return rule


@layer_family({2: "GLUMB", 1: "GLUMB1d", 3: "GLUMB3d"}, trace=gated_bottleneck_rule, mirror=mirrors.itself)
def gated_bottlenecks(axes: int, channels: Count, *, expansion: Count = 4) -> nn.Module:
    """Gated mobile bottleneck of DC-AE: channels up, SiLU, depthwise N-D, half gates the other half, down.

    project(value * silu(gate)), where value and gate are the halves of depthwise(silu(expand(x))); the last convolution
    has no bias. Norm and shortcut are up to the structure (Chen et al., 2024, arXiv:2410.10733).

    Args:
        channels: channels that come in and go out.
        expansion: how many times more channels value and gate have each.

    Examples:
        GLUMB_4: 4x7x6 -> 4x7x6
        GLUMB_6_expansion=2: 6x6x6 -> 6x6x6
        GLUMB1d_4: 4x9 -> 4x9
        GLUMB3d_4: 4x3x4x5 -> 4x3x4x5
    """
    from flexvae_layers_extra.residual_blocks import GatedBottleneck

    return GatedBottleneck(channels, expansion, axes)


LAYERS = [*residual_blocks, *tiny_blocks, *gated_bottlenecks]
