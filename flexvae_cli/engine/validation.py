"""How good the model is on images that training does not see, and what its latents look like."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from flexvae_cli.engine.data.dataset import Fault, MicroBatch
from flexvae_cli.engine.losses.total import TotalLoss
from flexvae_cli.engine.metrics import Scores, mean_scores, scores
from flexvae_cli.engine.vae import VAE


@dataclass(frozen=True, slots=True)
class Validation:
    """Means over all images.

    Attributes:
        values: losses, `psnr` (dB, on [0, 1]) and, where images are large enough for its window, `ssim`.
        latents: per channel, the `mean` and `std` of the latents over images and positions.
        bad: files that could not be read.
    """

    values: dict[str, float]
    latents: dict[str, list[float]]
    bad: tuple[Fault, ...]


@torch.inference_mode()
def validate(vae: VAE, loss: TotalLoss, batches: Iterable[MicroBatch], device: torch.device) -> Validation:
    """Measure `vae` in evaluation mode, so with posterior means; the mode is put back afterwards."""
    was_training = vae.training
    vae.eval()
    sums: dict[str, float] = defaultdict(float)
    moments: list[Tensor] = []
    quality: list[Scores] = []
    bad: dict[Fault, None] = {}
    for micro_batch in batches:
        bad |= dict.fromkeys(micro_batch.bad)
        if not len(micro_batch.x):
            continue
        batch = vae(micro_batch.x.to(device))
        for name, value in loss(batch).items():
            sums[name] += value.item() * len(batch.x)
        quality += [scores(x, y) for x, y in zip(batch.x, batch.reconstruction, strict=True)]
        moments.append(_moments(batch.encoded.z))
    vae.train(was_training)
    means = {name: value / max(1, len(quality)) for name, value in sums.items()}
    mean = mean_scores(quality)
    found = {"psnr": mean.psnr, "ssim": mean.ssim}
    return Validation(
        means | {name: value for name, value in found.items() if value is not None}, _statistics(moments), tuple(bad)
    )


def _moments(z: Tensor) -> Tensor:
    """(3, c): number, sum and sum of squares of each channel's elements, in float64."""
    flat = z.double().transpose(0, 1).flatten(1)  # (c, b * positions)
    return torch.stack([torch.full_like(flat[:, 0], flat.shape[1]), flat.sum(1), flat.square().sum(1)])


def _statistics(moments: list[Tensor]) -> dict[str, list[float]]:
    if not moments:
        return {}
    count, total, squares = torch.stack(moments).sum(0).cpu()
    mean = total / count
    std = (squares / count - mean.square()).clamp(min=0).sqrt()
    return {"mean": mean.tolist(), "std": std.tolist()}
