"""Losses on the orthonormal Fourier transform over all spatial axes: as many frequencies as elements."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from flexvae_cli.api import Batch


def transform(x: Tensor) -> Tensor:
    """(b, c, *space) to its complex spectrum of the same shape and, by Parseval, the same sum of squares."""
    return torch.fft.fftn(x, dim=tuple(range(2, x.dim())), norm="ortho")


@dataclass(frozen=True)
class Spectrum:
    """Mean modulus of the difference of the spectra, or mean difference of their moduli."""

    spectrum: Literal["complex", "amplitude"]

    def __call__(self, batch: Batch) -> Tensor:
        if self.spectrum == "complex":
            return transform(batch.reconstruction - batch.x).abs().mean()
        return (transform(batch.reconstruction).abs() - transform(batch.x).abs()).abs().mean()


@dataclass(frozen=True)
class FocalFrequency:
    """Squared errors of the spectrum, each weighted by its own size (arXiv:2012.12821, eq. 8 to 10)."""

    alpha: float

    def __call__(self, batch: Batch) -> Tensor:
        error = transform(batch.reconstruction - batch.x)  # (b, c, h, w), complex
        squared = error.real.square() + error.imag.square()
        return (focus(squared.detach(), self.alpha) * squared).mean()


def focus(squared: Tensor, alpha: float) -> Tensor:
    """The weights in [0, 1] of frequencies with these squared errors, (b, c, h, w): the largest of a channel has 1."""
    weights = squared ** (alpha / 2)
    largest = weights.amax(dim=(-2, -1), keepdim=True)
    return weights / largest.clamp(min=torch.finfo(weights.dtype).tiny)  # no error at all: nothing to weigh
