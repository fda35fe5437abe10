"""Normalisation, for data of any number of axes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from flexvae_cli.api import Count, Probability, Range, Rule, group_norm, layer, pointwise

if TYPE_CHECKING:
    from torch import nn

Epsilon = Annotated[float, Range(0)]


@layer("BN", trace=lambda num_features, affine: pointwise(num_features, 2 * num_features * affine))
def batch_norm(
    num_features: Count, *, eps: Epsilon = 1e-5, momentum: Probability = 0.1, affine: bool = True
) -> nn.Module:
    """Batch normalisation (Ioffe and Szegedy, 2015, arXiv:1502.03167).

    In training the statistics are those of the batch, over samples and positions, so a batch wants more than one number
    per channel. In evaluation they are the running ones, and each position stands by itself.

    Args:
        num_features: channels that come in and go out.
        eps: added to the variance.
        momentum: weight of the newest batch in the running statistics.
        affine: whether a learned scale and shift follow, one of each per channel.

    Examples:
        BN_4: 4x8x6 -> 4x8x6
        BN_4_momentum=0.01_affine=false: 4x10 -> 4x10
        BN_2: 2x4x3x5 -> 2x4x3x5
    """
    from flexvae_layers_extra.blocks import BatchNorm

    return BatchNorm(num_features, eps, momentum, affine)


def instance_norm_rule(num_features: int, affine: bool) -> Rule:
    """Group normalisation with one channel to a group."""
    return group_norm(num_features, num_features, affine)


@layer("IN", trace=instance_norm_rule)
def instance_norm(num_features: Count, *, eps: Epsilon = 1e-5, affine: bool = False) -> nn.Module:
    """Instance normalisation: each channel of each sample over its positions (Ulyanov et al., 2016, arXiv:1607.08022).

    Args:
        num_features: channels that come in and go out.
        eps: added to the variance.
        affine: whether a learned scale and shift follow, one of each per channel.

    Examples:
        IN_4: 4x8x6 -> 4x8x6
        IN_4_affine=true: 4x10 -> 4x10
    """
    from torch import nn

    # The same arithmetic as nn.InstanceNorm2d, for any number of axes.
    return nn.GroupNorm(num_features, num_features, eps, affine)


@layer("LN", trace=lambda num_channels, affine: pointwise(num_channels, 2 * num_channels * affine))
def layer_norm(num_channels: Count, *, eps: Epsilon = 1e-5, affine: bool = True) -> nn.Module:
    """Layer normalisation over the channels of each position (Ba et al., 2016, arXiv:1607.06450).

    Args:
        num_channels: channels that come in and go out.
        eps: added to the variance.
        affine: whether a learned scale and shift follow, one of each per channel.

    Examples:
        LN_4: 4x8x6 -> 4x8x6
        LN_6_eps=1e-06_affine=false: 6x10 -> 6x10
        LN_4: 4x4x3x5 -> 4x4x3x5
    """
    from flexvae_layers_extra.blocks import ChannelNorm

    return ChannelNorm(num_channels, eps, affine)


LAYERS = [batch_norm, instance_norm, layer_norm]
