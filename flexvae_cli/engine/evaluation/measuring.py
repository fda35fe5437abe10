"""Every measure of every image."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from torch import Tensor

from flexvae_cli.engine.evaluation.rate import bits_of
from flexvae_cli.engine.inference import BATCH_SIZE, Sample, decode_batch, encoded_batch, require_finite, runs
from flexvae_cli.engine.metrics import mae, ms_ssim, psnr, ssim, to_levels, to_unit

if TYPE_CHECKING:
    from flexvae_cli.api import Shape
    from flexvae_cli.engine.evaluation.inception import ReconstructionFID
    from flexvae_cli.engine.evaluation.perceptual import PerceptualDistance
    from flexvae_cli.engine.model import Model

Rounding = Literal["none", "8bit"]


class Instruments(NamedTuple):
    """What to measure with.

    Attributes:
        rounding: `8bit` rounds both images to the levels of an 8-bit file first.
        lpips: the perceptual distance, where there are weights for it.
        fid: gathers features of all images, where there are weights for them.
    """

    rounding: Rounding = "none"
    lpips: PerceptualDistance | None = None
    fid: ReconstructionFID | None = None


@dataclass(frozen=True, slots=True)
class Measured:
    """One image and what was measured on it.

    Attributes:
        name: the path below the source.
        size: of its axes: (height, width) of an image.
        values: by the keys of `MEASURES`; None where there is no such number; the PSNR of identical images is infinite.
    """

    name: str
    size: Shape
    values: dict[str, float | None]


def measure(
    model: Model, samples: Iterable[Sample], instruments: Instruments, batch_size: int = BATCH_SIZE
) -> Iterator[Measured]:
    """Encode and decode every image; latents are posterior means, where there is a posterior.

    Args:
        model: what is measured.
        samples: whole images.
        instruments: what to measure with.
        batch_size: most images of a batch.

    Raises:
        ModelError: the model gives numbers that are not finite.
    """
    for run in runs(samples, lambda sample: model.net.fitting(sample.size), batch_size):
        encoded = encoded_batch(model, [sample.x for sample in run])
        rates: Sequence[float | None] = bits_of(model, encoded) or [None] * len(run)
        images = decode_batch(model, encoded.z, [sample.size for sample in run])
        require_finite(model, run, encoded.z, "latents")
        require_finite(model, run, images, "pixels")
        if instruments.fid is not None:
            instruments.fid.add([sample.x for sample in run], images)
        for sample, x, bits in zip(run, images, rates, strict=True):
            rate = None if bits is None else bits / math.prod(sample.size)
            values = {**distances(sample.x, x, instruments), "rate": rate}
            yield Measured(sample.name, sample.size, values)


def distances(original: Tensor, reconstruction: Tensor, instruments: Instruments) -> dict[str, float | None]:
    """Every measure of two samples (c, *space) in [-1, 1]: clamped, mapped to [0, 1], rounded where that is asked."""
    a, b = to_unit(original), to_unit(reconstruction)
    if instruments.rounding == "8bit":
        a, b = to_levels(a), to_levels(b)
    return {
        "psnr": psnr(a, b),
        "ssim": ssim(a, b),
        "ms_ssim": ms_ssim(a, b),
        "mae": mae(a, b),
        "lpips": None if instruments.lpips is None else instruments.lpips(2 * a - 1, 2 * b - 1),
    }
