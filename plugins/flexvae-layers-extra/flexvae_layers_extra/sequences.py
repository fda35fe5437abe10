"""Activations for what repeats, as sound does."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flexvae_cli.api import Count, layer, mirrors, pointwise

if TYPE_CHECKING:
    from torch import nn


@layer("Snake", trace=lambda channels: pointwise(channels, channels), mirror=mirrors.in_order)
def snake(channels: Count) -> nn.Module:
    """x + sin^2(a * x) / a with a learned frequency a for each channel: for what repeats, as sound does.

    The frequencies start at 1 (Ziyin et al., 2020, arXiv:2006.08195).

    Args:
        channels: channels that come in and go out.

    Examples:
        Snake_4: 4x12 -> 4x12
        Snake_3: 3x4x5 -> 3x4x5
    """
    from flexvae_layers_extra.sequence_blocks import Snake

    return Snake(channels)


@layer("SnakeB", trace=lambda channels: pointwise(channels, 2 * channels), mirror=mirrors.in_order)
def snake_beta(channels: Count) -> nn.Module:
    """x + sin^2(a * x) / b with a learned frequency a and size 1 / b for each channel, kept as logarithms.

    As in BigVGAN and Stable Audio; both start at 1 (Lee et al., 2022, arXiv:2206.04658).

    Args:
        channels: channels that come in and go out.

    Examples:
        SnakeB_4: 4x12 -> 4x12
        SnakeB_3: 3x4x5 -> 3x4x5
    """
    from flexvae_layers_extra.sequence_blocks import SnakeBeta

    return SnakeBeta(channels)


LAYERS = [snake, snake_beta]
