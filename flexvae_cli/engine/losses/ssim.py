"""Structural similarity as a loss."""

from __future__ import annotations

import torch
from pytorch_msssim import ms_ssim, ssim
from torch import Tensor

from flexvae_cli.api import Batch

SIGMA = 1.5  # of the window, in pixels


class _Windowed:
    """Keeps the Gaussian window where it is used: made anew for every batch, it would hold up the device."""

    def __init__(self, window_size: int) -> None:
        at = torch.arange(window_size, dtype=torch.float64) - window_size // 2
        line = torch.exp(-at.square() / (2 * SIGMA**2))
        self._line = (line / line.sum()).float()[None, None, None]  # (1, 1, 1, window)

    def window(self, x: Tensor) -> Tensor:
        """The window for every channel of `x`: (c, 1, 1, window), with one more 1 for a volume."""
        if self._line.device != x.device:
            with torch.inference_mode(False):  # validation may come first
                self._line = self._line.to(x.device)
        return self._line.view(1, 1, *[1] * (x.dim() - 3), -1).expand(x.shape[1], *[-1] * (x.dim() - 1))


class Similarity(_Windowed):
    """1 - SSIM over (b, c, *space) in [-1, 1], mean over samples."""

    def __call__(self, batch: Batch) -> Tensor:
        return 1.0 - ssim(batch.reconstruction, batch.x, data_range=2.0, win=self.window(batch.x))


class MultiScale(_Windowed):
    """1 - MS-SSIM over (b, c, *space), mean over samples.

    Its factors are cut off below 0, so samples are first mapped to [0, 1], where means are positive.
    """

    def __call__(self, batch: Batch) -> Tensor:
        x, y = ((each + 1) / 2 for each in (batch.x, batch.reconstruction))
        return 1.0 - ms_ssim(y, x, data_range=1.0, win=self.window(x))
