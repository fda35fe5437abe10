"""Structural similarity as a loss."""

from __future__ import annotations

from pytorch_msssim import ssim
from torch import Tensor

from flexvae_cli.api import Batch

DATA_RANGE = 2.0  # samples lie in [-1, 1]


def ssim_loss(batch: Batch) -> Tensor:
    """1 - SSIM over (b, c, h, w), mean over samples."""
    return 1.0 - ssim(batch.reconstruction, batch.x, data_range=DATA_RANGE)
