"""The training step: one function, called by the trainer and by `mem`, without a host synchronisation in it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from flexvae_cli.engine.losses.total import TotalLoss
from flexvae_cli.engine.randomness import seed_everything
from flexvae_cli.engine.vae import VAE


def training_step(
    vae: VAE,
    loss: TotalLoss,
    optimizer: torch.optim.Optimizer,
    micro_batches: Sequence[Tensor],
    *,
    seed: int,
    step: int,
    clip_norm: float,
) -> dict[str, Tensor]:
    """One optimizer step over a batch that is cut into micro-batches.

    The gradient is that of the mean over all samples of the batch, however it is cut: a micro-batch weighs as many
    samples as it has. The global generators are re-seeded from (seed, step, k) before micro-batch k, so a step's result
    depends on weights, samples and these numbers alone.

    Args:
        micro_batches: samples (b_k, c, *space) in [-1, 1] on the device of the weights.
        clip_norm: largest norm of the gradient; 0 leaves it as it is.

    Returns:
        `loss`, each of its terms, unweighted, and `gradient_norm`, before clipping: scalars on the device.
    """
    optimizer.zero_grad(set_to_none=True)
    samples = sum(len(x) for x in micro_batches)
    totals: dict[str, Tensor] = {}
    for k, x in enumerate(micro_batches):
        seed_everything(seed, step, k)
        values = loss(vae(x))
        share = len(x) / samples
        (values["loss"] * share).backward()
        for name, value in values.items():
            part = value.detach() * share
            totals[name] = totals[name] + part if name in totals else part
    totals["gradient_norm"] = clip_grad_norm_(vae.parameters(), clip_norm or torch.inf)
    optimizer.step()
    return totals
