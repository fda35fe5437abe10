"""Terms on the latent."""

from __future__ import annotations

from torch import Tensor

from flexvae_cli.api import Batch


def kl_divergence(batch: Batch) -> Tensor:
    """KL(posterior || standard normal) in nats: summed over a sample's latent elements, mean over samples."""
    if batch.encoded.posterior is None:
        raise ValueError("the bottleneck has no posterior to measure")
    mean, log_variance = batch.encoded.posterior
    per_element = 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance)  # (b, c, *space)
    return per_element.flatten(1).sum(dim=1).mean()


def sparsity(batch: Batch) -> Tensor:
    """Mean absolute value over all elements of the latent that the decoder gets."""
    return batch.encoded.z.abs().mean()
