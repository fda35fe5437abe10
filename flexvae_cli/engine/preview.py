"""Pictures of a run: validation images above their reconstructions, and samples from the prior."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torchvision.utils import make_grid

from flexvae_cli.engine.data.dataset import EvaluationImages, Fault
from flexvae_cli.engine.data.images import to_image
from flexvae_cli.engine.vae import VAE

COLUMNS = 8
GAP = 4  # pixels, white


@torch.inference_mode()
def write_preview(folder: Path, step: int, vae: VAE, images: EvaluationImages) -> Path:
    """Write `step-00000500.png`: a row of images, one of their reconstructions, and one of decoded prior samples."""
    was_training = vae.training
    vae.eval()
    device = next(vae.parameters()).device
    samples = [images[index] for index in range(min(COLUMNS, len(images)))]
    x = torch.stack([s.x for s in samples if not isinstance(s, Fault)]).to(device)
    encoded = vae.encode(x)
    rows = [x, vae.decode(encoded.z)]
    prior = getattr(vae.bottleneck, "sample", None)
    if prior is not None:
        noise = prior(tuple(encoded.z.shape), generator=torch.Generator().manual_seed(0))  # the same at every step
        rows.append(vae.decode(noise.to(device)))
    vae.train(was_training)
    path = folder / f"step-{step:08d}.png"
    to_image(_grid(rows)).save(path)
    return path


def _grid(rows: list[Tensor]) -> Tensor:
    tiles = torch.cat([row.clamp(-1, 1).cpu() for row in rows])
    return make_grid(tiles, nrow=len(rows[0]), padding=GAP, pad_value=1.0)
