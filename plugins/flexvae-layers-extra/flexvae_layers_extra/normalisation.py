"""Normalisation, for data of any number of axes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from flexvae_cli.api import (
    Count,
    Mirrored,
    Original,
    Probability,
    Range,
    Rule,
    conv,
    group_norm,
    layer,
    mirrors,
    pointwise,
)

if TYPE_CHECKING:
    from torch import nn

Epsilon = Annotated[float, Range(0)]


@layer(
    "BN", trace=lambda num_features, affine: pointwise(num_features, 2 * num_features * affine), mirror=mirrors.in_order
)
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


@layer("IN", trace=instance_norm_rule, mirror=mirrors.in_order)
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


@layer(
    "LN", trace=lambda num_channels, affine: pointwise(num_channels, 2 * num_channels * affine), mirror=mirrors.in_order
)
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


def rms_norm_rule(num_channels: int, bias: bool) -> Rule:
    """A learned scale per channel, and a shift where there is one."""
    return pointwise(num_channels, (1 + bias) * num_channels)


@layer("RMSN", trace=rms_norm_rule, mirror=mirrors.in_order)
def rms_norm(num_channels: Count, *, eps: Epsilon = 1e-5, bias: bool = False) -> nn.Module:
    """RMS normalisation: the channels of each position over their root mean square, which no mean is taken from.

    x / sqrt(mean(x^2) + eps), times a learned scale per channel (Zhang and Sennrich, 2019, arXiv:1910.07467).

    Args:
        num_channels: channels that come in and go out.
        eps: added to the mean square.
        bias: whether a learned shift per channel follows.

    Examples:
        RMSN_4: 4x8x6 -> 4x8x6
        RMSN_6_eps=1e-06_bias=true: 6x10 -> 6x10
    """
    from flexvae_layers_extra.blocks import RootMeanSquareNorm

    return RootMeanSquareNorm(num_channels, eps, bias)


def divisive_norm_rule(num_channels: int) -> Rule:
    """A 1x1 convolution of the squares."""
    return conv(num_channels, num_channels, 1)


def divisive_norm_mirror(original: Original) -> Mirrored:
    """The decoder multiplies where the encoder divides."""
    return Mirrored((original.like(inverse=not original.values["inverse"]),), keeps_order=True)


@layer("GDN", trace=divisive_norm_rule, mirror=divisive_norm_mirror)
def generalised_divisive_norm(num_channels: Count, *, inverse: bool = False) -> nn.Module:
    """Generalised divisive normalisation of learned image compression (Balle et al., 2015, arXiv:1511.06281).

    Channel i of each position over sqrt(beta_i + sum_j gamma_ij * x_j^2); beta and gamma are learned and stay positive,
    for they are squares of the weights. The inverse, for decoders, multiplies.

    Args:
        num_channels: channels that come in and go out.
        inverse: whether to multiply instead.

    Examples:
        GDN_4: 4x8x6 -> 4x8x6
        GDN_3_inverse=true: 3x10 -> 3x10
    """
    from flexvae_layers_extra.blocks import DivisiveNorm

    return DivisiveNorm(num_channels, inverse)


LAYERS = [batch_norm, instance_norm, layer_norm, rms_norm, generalised_divisive_norm]
