"""How far a reconstruction is from the samples, element by element."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from flexvae_cli.api import Batch


def mse(batch: Batch) -> Tensor:
    return F.mse_loss(batch.reconstruction, batch.x)


def l1(batch: Batch) -> Tensor:
    return F.l1_loss(batch.reconstruction, batch.x)


@dataclass(frozen=True)
class Huber:
    """Half the squared error below `delta`, linear above."""

    delta: float

    def __call__(self, batch: Batch) -> Tensor:
        return F.huber_loss(batch.reconstruction, batch.x, delta=self.delta)


@dataclass(frozen=True)
class Charbonnier:
    """sqrt(error^2 + eps^2)."""

    eps: float

    def __call__(self, batch: Batch) -> Tensor:
        error = batch.reconstruction - batch.x
        return torch.sqrt(error.square() + self.eps**2).mean()


@dataclass(frozen=True)
class PSNR:
    """10 log10(squared error on [0, 1] + 10^(-most / 10)), mean over samples."""

    most: float

    def __call__(self, batch: Batch) -> Tensor:
        error = (batch.reconstruction - batch.x).square().flatten(1).mean(dim=1) / 4  # (b,); [-1, 1] is twice as wide
        return 10 * torch.log10(error + 10 ** (-self.most / 10)).mean()


def bce(batch: Batch) -> Tensor:
    """The decoder's output is taken as logits, the samples as probabilities: [-1, 1] -> [0, 1]."""
    return F.binary_cross_entropy_with_logits(batch.output, (batch.x + 1) / 2)
