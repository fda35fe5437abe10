"""Codes of vector quantizers. Importing this does not import torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from flexvae_cli.api import Count, Probability, Range, Rule, layer, mirrors, pointwise

if TYPE_CHECKING:
    from torch import nn

Codes = Annotated[int, Range(2, 1 << 24)]
Weight = Annotated[float, Range(0)]
Decay = Annotated[float, Range(0, 0.99999)]
Part = Annotated[float, Range(0, 0.9)]


def vectors(channels: int) -> Rule:
    """The channels stay, nothing is trained by gradients."""
    return pointwise(channels)


def grouped(channels: int, groups: int) -> Rule:
    """Like `vectors`, the channels cut into groups."""
    if channels % groups:
        raise ValueError(f"groups {groups} does not divide channels {channels}")
    return pointwise(channels)


def mapped(channels: int) -> Rule:
    """The channels stay; a square matrix is trained."""
    return pointwise(channels, channels * channels)


@layer("VQ", trace=vectors, quantizes=True, mirror=mirrors.nothing)
def vector_quantizer(
    codebook_size: Codes,
    channels: Count,
    *,
    commitment: Weight = 0.25,
    decay: Decay = 0.99,
    revive: Part = 0.1,
    from_data: bool = True,
    cosine: bool = False,
    rotation: bool = False,
) -> nn.Module:
    """Vector quantization: the nearest of a codebook's vectors (van den Oord et al., 2017, arXiv:1711.00937).

    The codes are running means of what is assigned to them, and start as mini-batch k-means does. The loss is the mean
    squared distance from the input to its code, times `commitment`.

    Args:
        codebook_size: number of codes.
        channels: channels that come in.
        commitment: weight of the loss.
        decay: of the running means, for each step.
        revive: a code used less than this part of an even share is replaced by an input; 0 for never.
        from_data: start from inputs of the first step instead of from normal noise.
        cosine: inputs and codes are scaled to length 1.
        rotation: the gradient is rotated as the code is from the input (arXiv:2410.06424), not passed on as it is.

    Examples:
        VQ_16_4: 4x6x5 -> 4x6x5
        VQ_16_3_cosine=true_rotation=true: 3x10 -> 3x10
        VQ_8_2_from-data=false_revive=0: 2x3x4x2 -> 2x3x4x2
    """
    from flexvae_layers_quantize.vectors import VectorQuantizer

    return VectorQuantizer(
        codebook_size,
        channels,
        commitment=commitment,
        rotation=rotation,
        cosine=cosine,
        decay=decay,
        revive=revive,
        from_data=from_data,
    )


@layer("RVQ", trace=grouped, quantizes=True, mirror=mirrors.nothing)
def residual_vector_quantizer(
    codebook_size: Codes,
    channels: Count,
    quantizers: Annotated[int, Range(1, 64)],
    groups: Annotated[int, Range(1, 64)] = 1,
    *,
    dropout: Probability = 0.0,
    commitment: Weight = 0.25,
    decay: Decay = 0.99,
    revive: Part = 0.1,
    from_data: bool = True,
    rotation: bool = False,
) -> nn.Module:
    """Residual vector quantization: each codebook takes what others left (Zeghidour et al., 2021, arXiv:2107.03312).

    With `groups` the channels are cut into that many parts, each with codebooks of its own; with one quantizer that is
    product quantization.

    Args:
        codebook_size: number of codes of every codebook.
        channels: channels that come in.
        quantizers: codebooks one behind the other.
        groups: parts that the channels are cut into.
        dropout: how often in training a random number of the last codebooks is left out, so that fewer suffice, too.
        commitment: weight of the loss.
        decay: of the running means, for each step.
        revive: a code used less than this part of an even share is replaced by an input; 0 for never.
        from_data: start from inputs of the first step instead of from normal noise.
        rotation: the gradient is rotated as the code is from the input (arXiv:2410.06424), not passed on as it is.

    Examples:
        RVQ_8_4_3: 4x6x5 -> 4x6x5
        RVQ_8_6_2_3_dropout=0.5: 6x10 -> 6x10
        RVQ_8_4_1_2_rotation=true: 4x3x4x2 -> 4x3x4x2
    """
    from flexvae_layers_quantize.vectors import VectorQuantizer

    return VectorQuantizer(
        codebook_size,
        channels,
        levels=quantizers,
        groups=groups,
        dropout=dropout,
        commitment=commitment,
        rotation=rotation,
        decay=decay,
        revive=revive,
        from_data=from_data,
    )


@layer("SimVQ", trace=mapped, quantizes=True, mirror=mirrors.nothing)
def simple_vector_quantizer(
    codebook_size: Codes, channels: Count, *, commitment: Weight = 0.25, rotation: bool = True
) -> nn.Module:
    """Vector quantization by random vectors behind one trained matrix (Zhu et al., 2024, arXiv:2411.02038).

    The loss is the mean squared distance that moves the codes, and `commitment` times that which moves the input.

    Args:
        codebook_size: number of codes.
        channels: channels that come in.
        commitment: weight of the distance that moves the input.
        rotation: the gradient is rotated as the code is from the input (arXiv:2410.06424), not passed on as it is.

    Examples:
        SimVQ_16_4: 4x6x5 -> 4x6x5
        SimVQ_16_3_rotation=false: 3x10 -> 3x10
    """
    from flexvae_layers_quantize.vectors import SimpleVectorQuantizer

    return SimpleVectorQuantizer(codebook_size, channels, commitment=commitment, rotation=rotation)


LAYERS = [vector_quantizer, residual_vector_quantizer, simple_vector_quantizer]
