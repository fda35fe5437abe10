"""The losses that come with the tool, declared as any plugin declares its own."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Literal

from flexvae_cli.api import Batch, Count, Ints, LossSpec, Range, Shape, WeightFile, loss

if TYPE_CHECKING:
    from torch import Tensor

Window = Annotated[int, Range(3, 99)]
LEAST_WINDOW = 16  # samples
LEAST_SIDES = {"vgg": 16, "alex": 31}  # what is left behind the last pooling is at least one position


@loss("mse", reduction="element")
def mse() -> Callable[[Batch], Tensor]:
    """Squared error, mean over all elements of all samples."""
    from flexvae_cli.engine.losses.reconstruction import mse

    return mse


@loss("l1", reduction="element")
def l1() -> Callable[[Batch], Tensor]:
    """Absolute error, mean over all elements of all samples."""
    from flexvae_cli.engine.losses.reconstruction import l1

    return l1


@loss("huber", reduction="element")
def huber(delta: Annotated[float, Range(1e-6)] = 1.0) -> Callable[[Batch], Tensor]:
    """Huber loss, mean over all elements: half the squared error below `delta`, linear above.

    Args:
        delta: where it turns linear, in units of the samples' [-1, 1].
    """
    from flexvae_cli.engine.losses.reconstruction import Huber

    return Huber(delta)


@loss("charbonnier", reduction="element")
def charbonnier(eps: Annotated[float, Range(1e-6)] = 1e-3) -> Callable[[Batch], Tensor]:
    """sqrt(error^2 + eps^2), a smooth absolute error, mean over all elements of all samples (arXiv:1710.01992).

    Args:
        eps: where it turns linear, in units of the samples' [-1, 1]; equal samples cost `eps`.
    """
    from flexvae_cli.engine.losses.reconstruction import Charbonnier

    return Charbonnier(eps)


@loss("psnr", reduction="sample")
def psnr(most: Annotated[float, Range(20, 100)] = 60.0) -> Callable[[Batch], Tensor]:
    """Minus the PSNR of a sample in dB, mean over samples (arXiv:2105.06086): the logarithm of its squared error.

    A sample that is reconstructed well pulls as hard as one that is not, so smooth images gain most against `mse`.

    Args:
        most: dB beyond which better is hardly rewarded any more; it keeps the gradient finite.
    """
    from flexvae_cli.engine.losses.reconstruction import PSNR

    return PSNR(most)


@loss("bce", reduction="element")
def bce() -> Callable[[Batch], Tensor]:
    """Binary cross-entropy, mean over all elements: the decoder's output is logits, samples are mapped to [0, 1]."""
    from flexvae_cli.engine.losses.reconstruction import bce

    return bce


def _has_neighbours(shape: Shape) -> None:
    if min(shape[1:]) < 2:
        raise ValueError("wants sides of at least 2 elements")


@loss("gradient", reduction="sample", fits=_has_neighbours)
def gradient() -> Callable[[Batch], Tensor]:
    """Edges: absolute error of the differences of neighbours, mean over all of an axis, then over axes and samples.

    Works for 1 to 3 spatial axes.
    """
    from flexvae_cli.engine.losses.edges import gradient

    return gradient


@loss("fft", reduction="element")
def fft(spectrum: Literal["complex", "amplitude"] = "complex") -> Callable[[Batch], Tensor]:
    """Absolute error of the spectra over all spatial axes, mean over all frequencies of all samples.

    The transform is orthonormal, so an error has the same energy here as in pixels.

    Args:
        spectrum: `complex`, the modulus of the difference of two complex numbers, which sees phases too; or
            `amplitude`, the difference of their moduli, which does not see where things are.
    """
    from flexvae_cli.engine.losses.spectrum import Spectrum

    return Spectrum(spectrum)


@loss("ffl", reduction="element", dims=2)
def ffl(alpha: Annotated[float, Range(0, 10)] = 1.0) -> Callable[[Batch], Tensor]:
    """Focal frequency loss, mean over all frequencies: squared errors, weighted towards the largest (arXiv:2012.12821).

    The weight of a frequency is its error's modulus to the power of `alpha`, divided by the largest in its sample and
    channel; it is a constant to the gradient, as in the paper. The transform is orthonormal.

    Args:
        alpha: how much the largest errors count; at 0 it is `mse`.
    """
    from flexvae_cli.engine.losses.spectrum import FocalFrequency

    return FocalFrequency(alpha)


def _has_window(shape: Shape, window_size: int, least: int | None = None) -> None:
    if len(shape) not in (3, 4):
        raise ValueError("works on 2-D and 3-D data")
    least = least or window_size
    if window_size % 2 == 0:
        raise ValueError(f"wants an odd window-size, not {window_size}")
    if min(shape[1:]) < least:
        raise ValueError(f"wants sides of at least {least} pixels")


@loss("ssim", reduction="sample", fits=_has_window)
def ssim(window_size: Window = 11) -> Callable[[Batch], Tensor]:
    """1 - SSIM with a Gaussian window, on samples in [-1, 1], mean over samples (Wang et al., 2004).

    Args:
        window_size: side of the window in pixels, odd.
    """
    from flexvae_cli.engine.losses.ssim import Similarity

    return Similarity(window_size)


def _has_five_scales(shape: Shape, window_size: int) -> None:
    _has_window(shape, window_size, least=16 * (window_size - 1) + 1)


@loss("msssim", reduction="sample", fits=_has_five_scales)
def msssim(window_size: Window = 11) -> Callable[[Batch], Tensor]:
    """1 - MS-SSIM, SSIM at five scales, mean over samples (Wang et al., 2003).

    Samples are mapped to [0, 1]. Sides must be above 16 * (window-size - 1): 160 pixels with the usual window.

    Args:
        window_size: side of the Gaussian window in pixels, odd.
    """
    from flexvae_cli.engine.losses.ssim import MultiScale

    return MultiScale(window_size)


def _is_an_image_for(shape: Shape, net: str) -> None:
    if shape[0] not in (1, 3):
        raise ValueError(f"wants samples of 1 or 3 channels, grey or RGB, not {shape[0]}")
    if min(shape[1:]) < LEAST_SIDES[net]:
        raise ValueError(f"wants sides of at least {LEAST_SIDES[net]} pixels for the net {net}")


@loss("lpips", reduction="sample", dims=2, fits=_is_an_image_for)
def lpips(*, net: Literal["vgg", "alex"] = "vgg", weights: WeightFile) -> Callable[[Batch], Tensor]:
    """Perceptual distance LPIPS, version 0.1: of a trained net's features, mean over samples (arXiv:1801.03924).

    Differences of features, normalised over channels, are squared, weighted by a linear head, averaged over positions
    and summed over five depths. Grey samples are repeated to three channels. The net is frozen.

    Args:
        net: VGG16, or AlexNet, which is faster.
        weights: a safetensors file with the features of torchvision's net (vgg16-397923af.pth or
            alexnet-owt-7be5be79.pth) and the linear heads of LPIPS 0.1 (vgg.pth or alex.pth); make one with
            `flexvae import-pt vgg16-397923af.pth vgg.pth lpips-vgg.safetensors --drop 'classifier.*'`
    """
    from flexvae_cli.engine.losses.perceptual import load_lpips

    return load_lpips(net, weights)


def _longer_than_windows(shape: Shape, windows: tuple[int, ...]) -> None:
    if min(windows) < LEAST_WINDOW:
        raise ValueError(f"wants windows of at least {LEAST_WINDOW} samples, not {min(windows)}")
    _longer_than_window(shape, max(windows))


def _longer_than_window(shape: Shape, window: int) -> None:
    if shape[1] <= window // 2:
        raise ValueError(f"wants more than {window // 2} samples, half of its window")


@loss("stft", reduction="sample", dims=1, fits=_longer_than_windows)
def stft(*, windows: Ints = (256, 512, 1024)) -> Callable[[Batch], Tensor]:
    """Multi-resolution STFT loss of signals, mean over channels and samples (arXiv:1910.11480).

    At every resolution: the norm of the difference of the magnitudes over that of the original's, plus the mean
    absolute difference of their natural logarithms; then the mean over resolutions. Hann windows overlap by three
    quarters.

    Args:
        windows: their lengths, in samples.
    """
    from flexvae_cli.engine.losses.audio import MultiResolution

    return MultiResolution(windows)


def _fits_mels(shape: Shape, rate: int, mels: int, window: int) -> None:
    _longer_than_window(shape, window)
    top = 2595 * math.log10(1 + rate / 2 / 700)
    lowest = 700 * (10 ** (2 * top / (mels + 1) / 2595) - 1)  # Hz that the lowest triangle covers
    if lowest < rate / window:
        raise ValueError(f"has {mels} mels, too many for a window of {window} at a rate of {rate}: some would be empty")


@loss("mel", reduction="sample", dims=1, fits=_fits_mels)
def mel(
    rate: Count = 16_000, *, mels: Count = 40, window: Annotated[int, Range(16)] = 1024
) -> Callable[[Batch], Tensor]:
    """Mean absolute difference of the decimal logarithms of mel spectra of signals, mean over channels and samples.

    The magnitudes of Hann windows that overlap by three quarters, summed in triangles on the mel scale, from 0 to half
    the rate.

    Args:
        rate: samples per second.
        mels: how many triangles.
        window: its length, in samples.
    """
    from flexvae_cli.engine.losses.audio import MelDistance

    return MelDistance(rate, mels, window)


@loss("kld", reduction="latent-sum")
def kld(free_bits: Annotated[float, Range(0)] = 0.0) -> Callable[[Batch], Tensor]:
    """KL divergence to the standard normal: summed over a sample's latent elements, mean over samples, in nats.

    With `free_bits`, the divergence of each channel, in nats per latent element, mean over samples and positions, is
    replaced by `free_bits` where it is lower: that channel then has no gradient (arXiv:1606.04934).

    Args:
        free_bits: nats per latent element that a channel may carry unpunished.
    """
    from flexvae_cli.engine.losses.latent import KLDivergence

    return KLDivergence(free_bits)


@loss("sparse", reduction="latent")
def sparse() -> Callable[[Batch], Tensor]:
    """Mean absolute value of the latent's elements."""
    from flexvae_cli.engine.losses.latent import sparsity

    return sparsity


LOSSES: list[LossSpec] = [
    mse,
    l1,
    huber,
    charbonnier,
    psnr,
    bce,
    gradient,
    fft,
    ffl,
    ssim,
    msssim,
    lpips,
    stft,
    mel,
    kld,
    sparse,
]


@loss("quantizers")
def quantizers() -> Callable[[Batch], Tensor]:
    """The own losses of a net's quantizers and bottleneck, summed; part of every objective, so not in a registry."""
    from flexvae_cli.engine.losses.latent import own_loss

    return own_loss
