"""The losses of the two players, from logits: high means "a sample", low means "a reconstruction".

All are means over every logit of every sample, so neither the number of patches nor the batch size changes what a
weight means. The discriminator's loss is half the sum over its two kinds of input, the mean over both. That factor of
1/2 is the one of VQGAN (arXiv:2012.09841) and of least-squares GANs; papers without it have twice the loss beside the
same penalties.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor
from torch.nn import functional as F


class AdversarialLoss(NamedTuple):
    """Both sides of a game; the tensors are logits (b, k, *space), in fp32, and the results scalars.

    Attributes:
        generator: logits of reconstructions -> what the autoencoder has to bring down.
        discriminator: logits of samples, logits of reconstructions -> what the discriminator has to bring down.
    """

    generator: Callable[[Tensor], Tensor]
    discriminator: Callable[[Tensor, Tensor], Tensor]


def hinge_generator(fake: Tensor) -> Tensor:
    """-mean(fake)."""
    return -fake.mean()


def hinge_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """1/2 mean(max(0, 1 - real)) + 1/2 mean(max(0, 1 + fake)) (Lim and Ye, arXiv:1705.02894)."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def non_saturating_generator(fake: Tensor) -> Tensor:
    """mean(softplus(-fake)), that is -log sigmoid(fake)."""
    return F.softplus(-fake).mean()


def non_saturating_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """1/2 mean(softplus(-real)) + 1/2 mean(softplus(fake)): cross-entropy (Goodfellow et al., arXiv:1406.2661)."""
    return 0.5 * (F.softplus(-real).mean() + F.softplus(fake).mean())


def least_squares_generator(fake: Tensor) -> Tensor:
    """1/2 mean((fake - 1)^2)."""
    return 0.5 * (fake - 1).square().mean()


def least_squares_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """1/2 mean((real - 1)^2) + 1/2 mean(fake^2) (Mao et al., arXiv:1611.04076, with a = 0 and b = c = 1)."""
    return 0.5 * ((real - 1).square().mean() + fake.square().mean())


LOSSES: dict[str, AdversarialLoss] = {
    "hinge": AdversarialLoss(hinge_generator, hinge_discriminator),
    "non-saturating": AdversarialLoss(non_saturating_generator, non_saturating_discriminator),
    "least-squares": AdversarialLoss(least_squares_generator, least_squares_discriminator),
}
"""`adversarial.loss` -> the game."""
