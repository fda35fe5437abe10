"""Edges as a loss."""

from __future__ import annotations

import torch
from torch import Tensor

from flexvae_cli.api import Batch


def gradient(batch: Batch) -> Tensor:
    """Mean absolute error of the differences of neighbours along each spatial axis, mean over the axes."""
    error = batch.reconstruction - batch.x  # (b, c, *space); differences are linear
    axes = range(2, error.dim())
    return torch.stack([error.diff(dim=axis).abs().mean() for axis in axes]).mean()
