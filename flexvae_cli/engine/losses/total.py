"""The whole loss: L = alpha * reconstruction + kld_weight * KLD + ssim * beta * (1 - SSIM) + sparse * L_sparse."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from flexvae_cli.api import Batch
from flexvae_cli.objective import Term


class TotalLoss:
    """The weighted sum of a plan's terms; every term is returned by itself, unweighted, for the log."""

    def __init__(self, terms: Iterable[Term]) -> None:
        self.terms: list[tuple[str, float, Callable[[Batch], Tensor]]] = [
            (term.name, term.weight, term.bound.build()) for term in terms
        ]

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """`{"loss": total, "reconstruction": ..., ...}`, scalars with gradients."""
        values = {name: loss(batch) for name, _, loss in self.terms}
        total = torch.stack([weight * values[name] for name, weight, _ in self.terms]).sum()
        if batch.encoded.loss is not None:
            values["bottleneck"] = batch.encoded.loss
            total = total + batch.encoded.loss
        return {"loss": total, **values}
