"""Dropout: in evaluation these layers do nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flexvae_cli.api import Probability, layer, mirrors, same

if TYPE_CHECKING:
    from torch import nn


@layer("Drop", trace=same, mirror=mirrors.in_order)
def dropout(p: Probability = 0.5) -> nn.Module:
    """Dropout: in training each number is zeroed by chance, the others are scaled by 1 / (1 - p).

    Args:
        p: probability of a zero.

    Examples:
        Drop: 3x8x6 -> 3x8x6
        Drop_0.1: 3x10 -> 3x10
    """
    from torch import nn

    return nn.Dropout(p)


@layer("Drop2d", dims=2, trace=same, mirror=mirrors.in_order)
def dropout2d(p: Probability = 0.5) -> nn.Module:
    """Channel dropout: in training whole channels of a sample are zeroed by chance, the others scaled by 1 / (1 - p).

    Args:
        p: probability of a zero.

    Examples:
        Drop2d: 8x6x4 -> 8x6x4
        Drop2d_0.1: 8x6x4 -> 8x6x4
    """
    from torch import nn

    return nn.Dropout2d(p)


@layer("DropPath", trace=same, mirror=mirrors.in_order)
def drop_path(p: Probability = 0.1) -> nn.Module:
    """Stochastic depth: in training the whole sample is zeroed by chance, the others are scaled by 1 / (1 - p).

    As the last layer of a `residual` it leaves the path out, sample by sample (Huang et al., 2016, arXiv:1603.09382).

    Args:
        p: probability of a zero.

    Examples:
        DropPath: 8x6x4 -> 8x6x4
        DropPath_0.2: 3x10 -> 3x10
    """
    from flexvae_layers_extra.blocks import DropPath

    return DropPath(p)


LAYERS = [dropout, dropout2d, drop_path]
