"""How good the model is on images that training does not see, and what its latents look like."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from itertools import chain, zip_longest
from typing import Any

import torch
from torch import Tensor

from flexvae_cli.engine.data.dataset import Fault, MicroBatch
from flexvae_cli.engine.distributed import World
from flexvae_cli.engine.losses.total import TotalLoss
from flexvae_cli.engine.metrics import Scores, mean_scores, scores
from flexvae_cli.engine.vae import VAE


@dataclass(frozen=True, slots=True)
class Validation:
    """Means over all images.

    Attributes:
        values: losses, `psnr` (dB, on [0, 1]) and, where images are large enough for its window, `ssim`; empty where
            none of the images can be read any more.
        bad: files that could not be read.
    """

    values: dict[str, float]
    bad: tuple[Fault, ...]


@contextmanager
def evaluating(vae: VAE) -> Iterator[torch.device]:
    """Evaluation mode without gradients, so with posterior means; the mode is put back. Yields the device."""
    was_training = vae.training
    vae.eval()
    try:
        with torch.inference_mode():
            yield next(vae.parameters()).device
    finally:
        vae.train(was_training)


def validate(
    vae: VAE, loss: TotalLoss, step: int, batches: Iterable[MicroBatch], world: World | None = None
) -> Validation:
    """Measure `vae` on every image, with the weights that the terms of the loss have at `step`.

    Args:
        batches: all of them, or of several processes every `world.size`-th.
        world: the processes that share them; each gets the numbers of all images, as one process would have them.
    """
    with evaluating(vae) as device:
        mine = [_measured(vae, loss, step, micro_batch, device) for micro_batch in batches]
    each = (world or World()).from_each(mine)
    return _mean([found for found in chain.from_iterable(zip_longest(*each)) if found is not None])


def _measured(vae: VAE, loss: TotalLoss, step: int, micro_batch: MicroBatch, device: torch.device) -> list[Any]:
    """Losses times samples, the scores of every image, and the bad files, in a form that goes between processes."""
    if not len(micro_batch.x):
        return [{}, [], micro_batch.bad]
    batch = vae(micro_batch.x.to(device))
    values = {name: value.item() * len(batch.x) for name, value in loss(batch, step).items()}
    quality = [astuple(scores(x, y)) for x, y in zip(batch.x, batch.reconstruction, strict=True)]
    return [values, quality, micro_batch.bad]


def _mean(batches: Sequence[Sequence[Any]]) -> Validation:
    """The means over what was measured on batches, in order."""
    sums: dict[str, float] = defaultdict(float)
    quality: list[Scores] = []
    bad: dict[Fault, None] = {}
    for values, each, faults in batches:
        for name, value in values.items():
            sums[name] += value
        quality += [Scores(*numbers) for numbers in each]
        bad |= dict.fromkeys(Fault(*fault) for fault in faults)
    if not quality:
        return Validation({}, tuple(bad))
    mean = mean_scores(quality)
    means = {name: value / len(quality) for name, value in sums.items()}
    found = {"psnr": mean.psnr, "ssim": mean.ssim}
    return Validation(means | {name: value for name, value in found.items() if value is not None}, tuple(bad))


def latent_statistics(vae: VAE, x: Tensor) -> dict[str, list[float]]:
    """The `mean` and `std` of each latent channel over samples (b, c, *space) and positions."""
    with evaluating(vae) as device:
        z = vae.encode(x.to(device)).z.cpu().double().transpose(0, 1).flatten(1)  # (c, b * positions)
        std, mean = torch.std_mean(z, dim=1, correction=0)
    return {"mean": mean.tolist(), "std": std.tolist()}
