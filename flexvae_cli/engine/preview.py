"""Pictures of a run: validation images above their reconstructions, and samples from the prior."""

from __future__ import annotations

import io

import torch
from torch import Tensor

from flexvae_cli.engine.data.images import to_image
from flexvae_cli.engine.vae import VAE
from flexvae_cli.engine.validation import evaluating

GAP = 4  # pixels, white


def preview(vae: VAE, x: Tensor) -> bytes:
    """A PNG: a row of samples (b, c, h, w), one of their reconstructions, and one of decoded draws from the prior."""
    with evaluating(vae) as device:
        encoded = vae.encode(x.to(device))
        rows = [x, vae.decode(encoded.z)]
        prior = getattr(vae.bottleneck, "sample", None)
        if prior is not None:
            noise = prior(tuple(encoded.z.shape), generator=torch.Generator().manual_seed(0))  # the same at every step
            rows.append(vae.decode(noise.to(device)))
        picture = to_image(grid(rows))
    data = io.BytesIO()
    picture.save(data, format="PNG")
    return data.getvalue()


def grid(rows: list[Tensor]) -> Tensor:
    """Rows of images (b, c, h, w) in [-1, 1] as one image (c, H, W), with white gaps."""
    padded = [torch.nn.functional.pad(row.cpu().clamp(-1, 1), (0, GAP, 0, GAP), value=1.0) for row in rows]
    joined = torch.cat([row.permute(1, 2, 0, 3).flatten(2) for row in padded], dim=1)  # (c, rows * h, b * w)
    return torch.nn.functional.pad(joined, (GAP, 0, GAP, 0), value=1.0)
