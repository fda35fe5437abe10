"""Losses on the spectra of short windows, for signals: at several resolutions, and on the mel scale."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from flexvae_cli.api import Batch

FLOOR = 1e-5  # of a magnitude, in front of the logarithm: 100 dB below that of the loudest sine


class Magnitudes:
    """Moduli of the spectra of Hann windows that overlap by three quarters, centred, the ends reflected.

    Args:
        window: its length in samples.
    """

    def __init__(self, window: int) -> None:
        self.length = window
        self._hann = torch.hann_window(window, dtype=torch.float64)

    def __call__(self, x: Tensor) -> Tensor:
        """Signals (b, c, n) -> (b * c, frequencies, frames); a sine of amplitude 1 has the modulus 1."""
        flat = F.pad(x.float().flatten(0, 1)[:, None], (self.length // 2,) * 2, mode="reflect")[:, 0]
        frames = flat.unfold(1, self.length, max(1, self.length // 4)) * self._window(x.device)  # (b c, frames, n)
        spectrum = torch.fft.rfft(frames, dim=2).transpose(1, 2) * (4 / self.length)
        # The root of a sum that may be 0 has no gradient there.
        return (spectrum.real.square() + spectrum.imag.square() + FLOOR**2).sqrt()

    def _window(self, device: torch.device) -> Tensor:
        if self._hann.device != device or self._hann.dtype != torch.float32:
            with torch.inference_mode(False):  # validation may come first
                self._hann = self._hann.to(device, torch.float32)
        return self._hann


class MultiResolution:
    """Spectral convergence and mean difference of logarithms, mean over resolutions (arXiv:1910.11480, eq. 4 to 6)."""

    def __init__(self, windows: Sequence[int]) -> None:
        self.magnitudes = [Magnitudes(window) for window in windows]

    def __call__(self, batch: Batch) -> Tensor:
        found = [_distance(each(batch.reconstruction), each(batch.x)) for each in self.magnitudes]
        return torch.stack(found).mean()


def _distance(y: Tensor, x: Tensor) -> Tensor:
    """Of spectra (signals, frequencies, frames): both parts for each signal, then the mean."""
    error, size = ((each.square().sum((1, 2)) + FLOOR**2).sqrt() for each in (y - x, x))
    return (error / size).mean() + (y.log() - x.log()).abs().mean()


class MelDistance:
    """Mean absolute difference of the logarithms of mel spectra."""

    def __init__(self, rate: int, mels: int, window: int) -> None:
        self.magnitudes = Magnitudes(window)
        self._bank = mel_bank(rate, mels, window)

    def __call__(self, batch: Batch) -> Tensor:
        bank = self._on(batch.x.device)
        y, x = ((bank @ self.magnitudes(each)).clamp(min=FLOOR).log10() for each in (batch.reconstruction, batch.x))
        return (y - x).abs().mean()

    def _on(self, device: torch.device) -> Tensor:
        if self._bank.device != device:
            with torch.inference_mode(False):
                self._bank = self._bank.to(device)
        return self._bank


def mel_bank(rate: int, mels: int, window: int) -> Tensor:
    """Triangles on the mel scale, float32 (mels, window // 2 + 1): each peaks at 1 where its neighbours are 0.

    mel = 2595 log10(1 + f / 700), from 0 to half the rate (O'Shaughnessy, 1987).
    """
    top = 2595 * math.log10(1 + rate / 2 / 700)
    edges = 700 * (10 ** (torch.linspace(0, top, mels + 2, dtype=torch.float64) / 2595) - 1)  # Hz
    at = torch.linspace(0, rate / 2, window // 2 + 1, dtype=torch.float64)
    low, middle, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising, falling = (at - low) / (middle - low), (high - at) / (high - middle)
    return torch.minimum(rising, falling).clamp(min=0).float()
