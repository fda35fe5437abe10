"""How good the model is on images that training does not see, and what its latents look like."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from flexvae_cli.engine.data.dataset import Fault, MicroBatch
from flexvae_cli.engine.losses.total import TotalLoss
from flexvae_cli.engine.metrics import Scores, mean_scores, scores
from flexvae_cli.engine.vae import VAE
from flexvae_cli.errors import DataError


@dataclass(frozen=True, slots=True)
class Validation:
    """Means over all images.

    Attributes:
        values: losses, `psnr` (dB, on [0, 1]) and, where images are large enough for its window, `ssim`.
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


def validate(vae: VAE, loss: TotalLoss, step: int, batches: Iterable[MicroBatch]) -> Validation:
    """Measure `vae` on every image, with the weights that the terms of the loss have at `step`.

    Raises:
        DataError: none of the images can be read any more.
    """
    sums: dict[str, float] = defaultdict(float)
    quality: list[Scores] = []
    bad: dict[Fault, None] = {}
    with evaluating(vae) as device:
        for micro_batch in batches:
            bad |= dict.fromkeys(micro_batch.bad)
            if not len(micro_batch.x):
                continue
            batch = vae(micro_batch.x.to(device))
            for name, value in loss(batch, step).items():
                sums[name] += value.item() * len(batch.x)
            quality += [scores(x, y) for x, y in zip(batch.x, batch.reconstruction, strict=True)]
    if not quality:
        raise DataError("none of the validation images can be read any more", where="data.validation")
    mean = mean_scores(quality)
    means = {name: value / len(quality) for name, value in sums.items()}
    found = {"psnr": mean.psnr, "ssim": mean.ssim}
    return Validation(means | {name: value for name, value in found.items() if value is not None}, tuple(bad))


def latent_statistics(vae: VAE, x: Tensor) -> dict[str, list[float]]:
    """The `mean` and `std` of each latent channel over samples (b, c, *space) and positions."""
    with evaluating(vae) as device:
        z = vae.encode(x.to(device)).z.double().transpose(0, 1).flatten(1)  # (c, b * positions)
        std, mean = torch.std_mean(z, dim=1, correction=0)
    return {"mean": mean.tolist(), "std": std.tolist()}
