"""How far a reconstruction is from the samples. All reduce by the mean over every element."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from flexvae_cli.api import Batch


def mse(batch: Batch) -> Tensor:
    return F.mse_loss(batch.output, batch.x)


def l1(batch: Batch) -> Tensor:
    return F.l1_loss(batch.output, batch.x)


@dataclass(frozen=True)
class Huber:
    """Half the squared error below `delta`, linear above."""

    delta: float

    def __call__(self, batch: Batch) -> Tensor:
        return F.huber_loss(batch.output, batch.x, delta=self.delta)


def bce(batch: Batch) -> Tensor:
    """The decoder's output is taken as logits, the samples as probabilities: [-1, 1] -> [0, 1]."""
    return F.binary_cross_entropy_with_logits(batch.output, (batch.x + 1) / 2)
