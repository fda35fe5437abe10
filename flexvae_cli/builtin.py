"""The bottlenecks and losses that come with the tool, registered as any plugin registers its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

from flexvae_cli.api import (
    Batch,
    LayerSpec,
    Range,
    Rule,
    Shape,
    ShapeError,
    Spec,
    Step,
    bottleneck,
    hookimpl,
    loss,
    same,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

FLEXVAE_API = 1


def halves() -> Rule:
    """(2c, *space) -> (c, *space): the two halves are mean and log-variance."""

    def rule(shape: Shape) -> Step:
        if shape[0] % 2:
            raise ShapeError(f"takes an even number of channels (mean and log-variance), but {shape[0]} come in")
        step = same()(shape)
        return Step((shape[0] // 2, *shape[1:]), 0, 0, step.reach)

    return rule


@bottleneck("KL", trace=halves)
def kl() -> nn.Module:
    """Variational bottleneck: the channels' halves are mean and log-variance of a normal (arXiv:1312.6114).

    In training the latent is drawn from it, else it is the mean. The log-variance is clamped to [-30, 20].

    Examples:
        KL: 8x4x4 -> 4x4x4
    """
    from flexvae_cli.engine.bottlenecks.kl import KL

    return KL()


@bottleneck("None", trace=same)
def none() -> nn.Module:
    """No bottleneck: the latent is what the encoder gives, as in a plain autoencoder.

    Examples:
        None: 4x4x4 -> 4x4x4
    """
    from flexvae_cli.engine.bottlenecks.none import Plain

    return Plain()


@loss("mse")
def mse() -> Callable[[Batch], Tensor]:
    """Squared error, mean over all elements of all samples."""
    from flexvae_cli.engine.losses.reconstruction import mse

    return mse


@loss("l1")
def l1() -> Callable[[Batch], Tensor]:
    """Absolute error, mean over all elements of all samples."""
    from flexvae_cli.engine.losses.reconstruction import l1

    return l1


@loss("huber")
def huber(delta: Annotated[float, Range(1e-6)] = 1.0) -> Callable[[Batch], Tensor]:
    """Huber loss, mean over all elements: half the squared error below `delta`, linear above.

    Args:
        delta: where it turns linear, in units of the samples' [-1, 1].
    """
    from flexvae_cli.engine.losses.reconstruction import Huber

    return Huber(delta)


@loss("bce")
def bce() -> Callable[[Batch], Tensor]:
    """Binary cross-entropy, mean over all elements: the decoder's output is logits, samples are mapped to [0, 1]."""
    from flexvae_cli.engine.losses.reconstruction import bce

    return bce


@loss("kld")
def kld() -> Callable[[Batch], Tensor]:
    """KL divergence to the standard normal: summed over a sample's latent elements, mean over samples, in nats."""
    from flexvae_cli.engine.losses.latent import kl_divergence

    return kl_divergence


@loss("ssim")
def ssim() -> Callable[[Batch], Tensor]:
    """1 - SSIM with an 11-pixel Gaussian window, mean over samples (Wang et al., 2004)."""
    from flexvae_cli.engine.losses.ssim import ssim_loss

    return ssim_loss


@loss("sparse")
def sparse() -> Callable[[Batch], Tensor]:
    """Mean absolute value of the latent's elements."""
    from flexvae_cli.engine.losses.latent import sparsity

    return sparsity


@hookimpl
def flexvae_bottlenecks() -> list[LayerSpec]:
    return [kl, none]


@hookimpl
def flexvae_losses() -> list[Spec]:
    return [mse, l1, huber, bce, kld, ssim, sparse]
