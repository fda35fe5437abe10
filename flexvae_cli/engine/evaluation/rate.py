"""How many bits a latent costs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from flexvae_cli.api import Encoded, Gaussian
    from flexvae_cli.engine.model import Model


def gaussian_kl(posterior: Gaussian) -> Tensor:
    """KL(posterior || standard normal) of every element in nats, float64 (b, c, *space)."""
    mean, log_variance = (each.double() for each in posterior)
    return 0.5 * (mean.square() + log_variance.expm1() - log_variance)


def bits_of(model: Model, encoded: Encoded) -> list[float] | None:
    """Bits per sample of a batch; None where the bottleneck has no rate.

    With a posterior: its divergence from the standard normal, which is what bits-back coding pays on average
    (Hinton and van Camp, 1993). With indices: their number times the `bits` of one, where the bottleneck's module has
    that attribute, as for codes that are all equally likely.
    """
    if encoded.posterior is not None:
        nats: list[float] = gaussian_kl(encoded.posterior).flatten(1).sum(1).tolist()
        return [each / math.log(2) for each in nats]
    bits: Any = getattr(model.vae.bottleneck, "bits", None)
    batch = len(encoded.z)
    if encoded.indices is None or not isinstance(bits, int | float) or encoded.indices.shape[:1] != (batch,):
        return None
    return [encoded.indices.numel() / batch * bits] * batch
