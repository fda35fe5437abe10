"""How near a reconstruction is to its original: measures of whole images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pytorch_msssim import ms_ssim as windowed_ms_ssim
from pytorch_msssim import ssim as windowed_ssim
from torch import Tensor

from flexvae_cli.api import Shape

SSIM_WINDOW = 11  # pixels; smaller images have no SSIM
MS_SSIM_SIDE = (SSIM_WINDOW - 1) * 2**4 + 1  # pixels; the window must fit after four halvings


@dataclass(frozen=True, slots=True)
class Scores:
    """What was measured on one image, or the mean over several.

    Attributes:
        psnr: in dB; infinite where the images are identical, None where there is nothing to take a mean of.
        ssim: 1 at most; None where a side has fewer than 11 pixels.
    """

    psnr: float | None
    ssim: float | None


def to_unit(x: Tensor) -> Tensor:
    """Samples in [-1, 1], clamped, as float32 values in [0, 1]."""
    return x.to(torch.float32).clamp(-1, 1).add(1).div(2)


def psnr(a: Tensor, b: Tensor) -> float:
    """Peak signal-to-noise ratio of two images (c, *space) in [0, 1]: 10 log10(1 / mean squared error), in dB."""
    error = (a.double() - b.double()).square().mean().item()
    return math.inf if error == 0 else -10 * math.log10(error)


def ssim(a: Tensor, b: Tensor) -> float | None:
    """Structural similarity of two images (c, *space) in [0, 1], mean over channels (Wang et al., 2004).

    The window is a Gaussian of 11 pixels (voxels) and deviation 1.5. None where a side has fewer than 11, and of a
    signal, for which it is not defined.
    """
    if a.dim() < 3 or min(a.shape[1:]) < SSIM_WINDOW:
        return None
    return float(windowed_ssim(a[None], b[None], data_range=1.0, size_average=False, win_size=SSIM_WINDOW))


def ms_ssim(a: Tensor, b: Tensor) -> float | None:
    """Multi-scale structural similarity of two images (c, *space) in [0, 1], mean over channels (Wang et al., 2003).

    Five scales, each with the window of `ssim`. None where a side has fewer than 161 pixels, and of a signal.
    """
    if a.dim() < 3 or min(a.shape[1:]) < MS_SSIM_SIDE:
        return None
    return float(windowed_ms_ssim(a[None], b[None], data_range=1.0, size_average=False, win_size=SSIM_WINDOW))


def mae(a: Tensor, b: Tensor) -> float:
    """Mean absolute error of two images (c, *space) in [0, 1]."""
    return (a.double() - b.double()).abs().mean().item()


def to_levels(x: Tensor) -> Tensor:
    """Values in [0, 1] rounded to the 256 levels that an 8-bit image has."""
    return x.mul(255).round().div(255)


def scores(original: Tensor, reconstruction: Tensor) -> Scores:
    """PSNR and SSIM of samples (c, *space) in [-1, 1]: clamped, mapped to [0, 1], not rounded to 8 bits."""
    a, b = to_unit(original), to_unit(reconstruction)
    return Scores(psnr(a, b), ssim(a, b))


def mean_scores(each: Sequence[Scores]) -> Scores:
    """Means over images, each of which counts the same; those without a finite value are left out."""
    finite = [s.psnr for s in each if s.psnr is not None and math.isfinite(s.psnr)]
    similar = [s.ssim for s in each if s.ssim is not None]
    return Scores(
        math.fsum(finite) / len(finite) if finite else None,
        math.fsum(similar) / len(similar) if similar else None,
    )


def metrics_of(each: Sequence[tuple[str, str, Shape, Scores]], **more: Any) -> dict[str, Any]:
    """PSNR and SSIM of every image and their means, as JSON values; JSON has no infinity, so that becomes null.

    Args:
        each: name, output, size and scores of every sample.
        more: what else is to be said, put first.
    """
    mean = mean_scores([scores for *_, scores in each])
    rows = [
        {
            "name": name,
            "output": output,
            "size": list(size),
            "psnr": None if found.psnr == math.inf else found.psnr,
            "ssim": found.ssim,
            "identical": found.psnr == math.inf,
        }
        for name, output, size, found in each
    ]
    identical = sum(row["identical"] is True for row in rows)
    means = {"psnr": mean.psnr, "ssim": mean.ssim}
    return {**more, "count": len(rows), "identical": identical, "mean": means, "images": rows}
