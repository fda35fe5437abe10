"""How much the adversarial loss weighs: as much as the other losses, measured at the decoder's last layer."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from flexvae_cli.api import Batch
from flexvae_cli.engine.vae import VAE
from flexvae_cli.errors import UsageError

SMALLEST_NORM = 1e-4  # added to the adversarial gradient's norm, as in VQGAN


def last_layer(vae: VAE, frozen: Collection[str] | None = None) -> nn.Parameter:
    """The weight of the decoder's last layer that has one of at least two axes and is trained.

    Args:
        vae: the autoencoder.
        frozen: the names of the parameters that are not trained, where that is not what `requires_grad` says now.

    Raises:
        UsageError: there is none.
    """
    for name, parameter in reversed(list(vae.decoder.named_parameters(prefix="decoder"))):
        trained = parameter.requires_grad if frozen is None else name not in frozen
        if parameter.dim() >= 2 and trained:
            return parameter
    raise UsageError(
        "no layer of the decoder is trained that has a weight of two axes or more, and the adaptive weight is "
        "measured at the last of them",
        where="adversarial.adaptive",
        hint="set adversarial.adaptive = false, or train the decoder's last layer",
    )


def gradient_ratio(
    batch: Batch, other_loss: Tensor, adversarial: Tensor, last: nn.Parameter, most: float = torch.inf
) -> Tensor:
    """||d other / d last|| / (||d adversarial / d last|| + 1e-4), the adaptive weight of VQGAN (arXiv:2012.09841).

    Both gradients are followed from the decoder's output on at norm 1 and multiplied by their norm afterwards: they
    neither vanish nor overflow in fp16, and need no scale of the loss.

    Args:
        batch: with the graph of the decoder, which is kept.
        other_loss: a function of the batch; its graph is kept.
        adversarial: the gradient of the adversarial loss by `batch.reconstruction`, of the same shape.
        last: the weight of the decoder's last layer.
        most: the largest ratio.

    Returns:
        A scalar without graph, from 0 to `most`; 0 where it is not finite, so that such a batch trains as one without
        a discriminator.
    """
    (other,) = torch.autograd.grad(other_loss, batch.output, retain_graph=True, allow_unused=True)
    norm = adversarial.new_zeros(()) if other is None else _norm_at(batch.output, other, last)
    ratio = norm / (_norm_at(batch.reconstruction, adversarial, last) + SMALLEST_NORM)
    return torch.where(torch.isfinite(ratio), ratio, 0.0).clamp(0.0, most)


def _norm_at(output: Tensor, gradient: Tensor, last: nn.Parameter) -> Tensor:
    """The norm at `last` of a gradient by `output`."""
    norm = torch.linalg.vector_norm(gradient)
    unit = gradient / norm.clamp_min(torch.finfo(norm.dtype).tiny)
    (found,) = torch.autograd.grad(output, last, unit, retain_graph=True)
    return norm * torch.linalg.vector_norm(found)


class Known(torch.autograd.Function):
    """A value whose gradient by a tensor is known already: `Known.apply(at, value, gradient)`."""

    @staticmethod
    def forward(ctx: Any, at: Tensor, value: Tensor, gradient: Tensor) -> Tensor:  # noqa: ARG004
        ctx.save_for_backward(gradient)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *by_value: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return by_value[0] * gradient, None, None
