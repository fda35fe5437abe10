"""Codes of quantizers that round numbers one by one. Importing this does not import torch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated

from flexvae_cli.api import Ints, Probability, Range, Rule, layer, mirrors, pointwise, same
from flexvae_layers_quantize.vector_codes import Decay, Weight

if TYPE_CHECKING:
    from torch import nn

Bits = Annotated[int, Range(1, 30)]
Group = Annotated[int, Range(1, 12)]


def scalars(levels: tuple[int, ...]) -> Rule:
    """As many channels as there are levels; they stay."""
    if min(levels) < 3:
        raise ValueError(f"a channel of {min(levels)} levels: want 3 at least; LFQ and BSQ are for two")
    if math.prod(levels) >= 1 << 31:
        raise ValueError(f"{math.prod(levels):,} codes; an index holds less than 2^31")
    return pointwise(len(levels))


def residual_scalars(levels: tuple[int, ...]) -> Rule:
    """Like `scalars`; the codes are listed in memory."""
    if math.prod(levels) > 1 << 20:
        raise ValueError(f"{math.prod(levels):,} codes; the most is {1 << 20:,}")
    return scalars(levels)


def signs(bits: int) -> Rule:
    """One channel for each bit; they stay."""
    return pointwise(bits)


@layer("FSQ", trace=scalars, quantizes=True, mirror=mirrors.nothing)
def finite_scalar_quantizer(levels: Ints) -> nn.Module:
    """Finite scalar quantization: channels are bounded and rounded to levels (Mentzer et al., 2023, arXiv:2309.15505).

    There is no codebook and no loss; there are as many codes as the product of the levels.

    Args:
        levels: values that each channel can take, 3 at least; as many numbers as there are channels.

    Examples:
        FSQ_8.5.5.5: 4x6x5 -> 4x6x5
        FSQ_5.3: 2x10 -> 2x10
    """
    from flexvae_layers_quantize.scalars import FiniteScalarQuantizer

    return FiniteScalarQuantizer(levels)


@layer("RFSQ", trace=residual_scalars, quantizes=True, mirror=mirrors.nothing)
def residual_finite_scalar_quantizer(
    levels: Ints, quantizers: Annotated[int, Range(1, 16)], *, dropout: Probability = 0.0
) -> nn.Module:
    """Residual finite scalar quantization: each quantizer rounds what those before it left over, on a finer grid.

    Args:
        levels: values that each channel can take, 3 at least; as many numbers as there are channels.
        quantizers: how many, one behind the other.
        dropout: how often in training a random number of the last ones is left out, so that fewer suffice, too.

    Examples:
        RFSQ_5.5.5_2: 3x6x5 -> 3x6x5
        RFSQ_8.5_3_dropout=0.5: 2x10 -> 2x10
    """
    from flexvae_layers_quantize.scalars import ResidualFiniteScalarQuantizer

    return ResidualFiniteScalarQuantizer(levels, quantizers, dropout)


@layer("LFQ", trace=signs, quantizes=True, mirror=mirrors.nothing)
def lookup_free_quantizer(
    bits: Bits, *, entropy: Weight = 0.1, diversity: Weight = 1.0, commitment: Weight = 0.25, group: Group = 8
) -> nn.Module:
    """Lookup-free quantization: channels become signs, which are an index's bits (Yu et al., 2023, arXiv:2310.05737).

    The loss is `entropy` * (entropy of a position's signs - `diversity` * entropy of the mean over the batch), in nats,
    plus `commitment` times the mean squared distance from the input to its code.

    Args:
        bits: of an index, which are the channels that come in.
        entropy: weight of the entropies.
        diversity: weight of the second entropy within these.
        commitment: weight of the distance to the code.
        group: neighbouring channels whose signs are counted together in the second entropy.

    Examples:
        LFQ_4: 4x6x5 -> 4x6x5
        LFQ_10_group=5_entropy=0.2: 10x10 -> 10x10
    """
    from flexvae_layers_quantize.scalars import BinaryQuantizer

    return BinaryQuantizer(
        bits, spherical=False, entropy=entropy, diversity=diversity, commitment=commitment, group=group
    )


@layer("BSQ", trace=signs, quantizes=True, mirror=mirrors.nothing)
def binary_spherical_quantizer(
    bits: Bits, *, entropy: Weight = 0.1, diversity: Weight = 1.0, commitment: Weight = 0.25, group: Group = 8
) -> nn.Module:
    """Binary spherical quantization: LFQ with vectors of length 1 (Zhao et al., 2024, arXiv:2406.07548).

    The loss is that of LFQ.

    Args:
        bits: of an index, which are the channels that come in.
        entropy: weight of the entropies.
        diversity: weight of the second entropy within these.
        commitment: weight of the distance to the code.
        group: neighbouring channels whose signs are counted together in the second entropy.

    Examples:
        BSQ_4: 4x6x5 -> 4x6x5
        BSQ_18: 18x10 -> 18x10
    """
    from flexvae_layers_quantize.scalars import BinaryQuantizer

    return BinaryQuantizer(
        bits, spherical=True, entropy=entropy, diversity=diversity, commitment=commitment, group=group
    )


@layer("FQ", trace=same, quantizes=True, mirror=mirrors.in_order)
def fixed_point_quantizer(bits: Annotated[int, Range(2, 16)], *, decay: Decay = 0.99) -> nn.Module:
    """Fixed-point numbers: 2^bits equal steps over a running range (Jacob et al., 2017, arXiv:1712.05877).

    The range, from the least to the greatest number, is one for the whole tensor. Gradients pass through where a number
    lies in it.

    Args:
        bits: of a number, from 2 to 16.
        decay: of the running range, for each step.

    Examples:
        FQ_8: 3x6x5 -> 3x6x5
        FQ_2_decay=0.9: 3x10 -> 3x10
    """
    from flexvae_layers_quantize.scalars import FixedPointQuantizer

    return FixedPointQuantizer(bits, decay)


LAYERS = [
    finite_scalar_quantizer,
    residual_finite_scalar_quantizer,
    lookup_free_quantizer,
    binary_spherical_quantizer,
    fixed_point_quantizer,
]
