"""Terms on the latent."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flexvae_cli.api import Batch


def elementwise_kl(batch: Batch) -> Tensor:
    """KL(posterior || standard normal) of every latent element in nats, (b, c, *space)."""
    if batch.encoded.posterior is None:
        raise ValueError("the bottleneck has no posterior to measure")
    mean, log_variance = batch.encoded.posterior
    return 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance)


@dataclass(frozen=True)
class KLDivergence:
    """KL divergence in nats: summed over a sample's latent elements, mean over samples.

    With free bits, the mean of a channel over the batch (the micro-batch, where a step accumulates) and its positions
    counts as `free_bits` where it is lower; each counts as often as a sample has positions.
    """

    free_bits: float = 0.0

    def __call__(self, batch: Batch) -> Tensor:
        elements = elementwise_kl(batch)
        if not self.free_bits:
            return elements.flatten(1).sum(dim=1).mean()
        channels = elements.transpose(0, 1).flatten(1)  # (c, b * positions)
        positions = channels.shape[1] // len(elements)
        return channels.mean(dim=1).clamp(min=self.free_bits).sum() * positions


def rate(batch: Batch) -> Tensor:
    """KL divergence in nats per latent element, mean over elements and samples, without a gradient."""
    with torch.no_grad():
        return elementwise_kl(batch).mean()


def sparsity(batch: Batch) -> Tensor:
    """Mean absolute value over all elements of the latent that the decoder gets."""
    return batch.encoded.z.abs().mean()


def own_loss(batch: Batch) -> Tensor:
    """What the net's quantizers and its bottleneck ask for themselves; nothing where they ask for nothing."""
    return batch.x.new_zeros(()) if batch.encoded.loss is None else batch.encoded.loss
