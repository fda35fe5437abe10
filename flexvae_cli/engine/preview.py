"""Pictures of a run: validation images, what the model makes of them, where it errs, its latents, and samples."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from flexvae_cli.engine.data.images import to_image
from flexvae_cli.engine.metrics import psnr, to_unit
from flexvae_cli.engine.picture import picture
from flexvae_cli.engine.sheet import Tile, rows, tile
from flexvae_cli.engine.vae import VAE
from flexvae_cli.engine.validation import evaluating

SIDE = 256  # pixels of the longer side of a tile, at most
CHANNELS = 8  # of the latent, at most, are shown
DEVIATIONS = 2.5  # around a latent channel's mean are black and white
BRIGHTEST = 64  # the most that a difference is amplified by
CLIPPED = 0.01  # the share of a difference that may be brighter than white
GAP, EMPTY = 2, "#ffffff"  # between the channels of a latent


def preview(vae: VAE, x: Tensor) -> bytes:
    """A PNG of what `vae` does with samples (b, c, *space) in [-1, 1]; no generator but its own is drawn from.

    Its rows: the originals; their reconstructions and the PSNR of each; the absolute differences, whose mean over
    channels is amplified by the power of two that the label names, the largest that leaves 1 % of them at most brighter
    than white; the latents, a grey tile per channel, each channel from 2.5 standard deviations below its mean over all
    samples (black) to 2.5 above it (white); and, where the bottleneck has a prior, decoded draws from it, the same
    draws at every step.
    """
    with evaluating(vae) as device:
        encoded = vae.encode(x.to(device))
        z, y = encoded.z.float().cpu(), vae.decode(encoded.z).float().cpu()
        prior = getattr(vae.bottleneck, "sample", None)
        if prior is not None:
            noise = prior(tuple(encoded.z.shape), generator=torch.Generator().manual_seed(0))
            drawn = vae.decode(noise.to(device)).float().cpu()
    x = x.float().cpu()
    originals = [_tile(sample) for sample in x]
    labelled: list[tuple[str, Sequence[Tile]]] = [
        ("originals", originals),
        ("reconstructions", [_tile(b, quality(a, b)) for a, b in zip(x, y, strict=True)]),
        differences(x, y),
        latents(z, originals[0].image.size),
    ]
    if prior is not None:
        labelled.append(("samples from the prior", [_tile(sample) for sample in drawn]))
    data = io.BytesIO()
    rows(labelled).save(data, format="PNG")
    return data.getvalue()


def _tile(sample: Tensor, caption: str = "") -> Tile:
    return tile(picture(sample), caption, longest=SIDE)


def quality(original: Tensor, reconstruction: Tensor) -> str:
    """`28.2 dB`: the PSNR of two samples (c, *space) in [-1, 1]."""
    found = psnr(to_unit(original), to_unit(reconstruction))
    return "identical" if found == math.inf else f"{found:.1f} dB"


def differences(x: Tensor, y: Tensor) -> tuple[str, list[Tile]]:
    """A label and a grey tile per sample: |x - y| in [0, 1], the mean over channels, amplified."""
    found = (to_unit(x) - to_unit(y)).abs().mean(dim=1, keepdim=True)  # (b, 1, *space)
    factor = BRIGHTEST
    while factor > 1 and (found * factor > 1).float().mean() > CLIPPED:
        factor //= 2
    label = "|difference|" + (f", {factor} times as bright" if factor > 1 else "")
    return label, [_tile(each * factor * 2 - 1) for each in found]


def latents(z: Tensor, size: tuple[int, int]) -> tuple[str, list[Tile]]:
    """A label and a tile of `size` (width, height) per latent of `z` (b, c, *space): its channels, in reading order."""
    planes = _planes(z)  # (b, c, h, w)
    std, mean = torch.std_mean(planes, dim=(0, 2, 3), keepdim=True, correction=0)
    grey = (planes - mean) / (DEVIATIONS * std).clamp(min=1e-12)
    shown = min(CHANNELS, z.shape[1])
    some = f"{shown} of {z.shape[1]} channels" if shown < z.shape[1] else f"{shown} channel{'s' * (shown > 1)}"
    label = f"latents: {some}, grey from {-DEVIATIONS} to +{DEVIATIONS} deviations around each one's mean"
    return label, [Tile(_mosaic([to_image(c[None].nan_to_num()) for c in each[:shown]], size)) for each in grey]


def _planes(z: Tensor) -> Tensor:
    """(b, c, *space) with two axes of space: of more the first ones are cut in the middle, missing ones are added."""
    while z.dim() > 4:
        z = z.select(2, z.shape[2] // 2)
    return z[(..., *[None] * (4 - z.dim()))]


def _mosaic(channels: Sequence[Image.Image], size: tuple[int, int]) -> Image.Image:
    """Pictures of one size in rows, on an image of `size`."""
    across = math.ceil(math.sqrt(len(channels)))
    down = math.ceil(len(channels) / across)
    box = (max(1, (size[0] + GAP) // across - GAP), max(1, (size[1] + GAP) // down - GAP))
    sheet = Image.new("RGB", size, EMPTY)
    for index, channel in enumerate(channels):
        how = Image.Resampling.NEAREST if box[0] >= channel.width else Image.Resampling.BOX
        sheet.paste(channel.resize(box, how), (index % across * (box[0] + GAP), index // across * (box[1] + GAP)))
    return sheet
