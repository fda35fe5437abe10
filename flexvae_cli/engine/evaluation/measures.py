"""What is measured of a model, image by image, and which way is better."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Measure:
    """Something that every image has a number for, or none.

    Attributes:
        key: in JSON and CSV.
        title: in a table, with the unit; bpp is bits per pixel of the image.
        better: which way is better.
        digits: behind the point, in a table.
        lacking: why there is no number, where no image has one.
    """

    key: str
    title: str
    better: Literal["higher", "lower"]
    digits: int
    lacking: str


MEASURES = (
    Measure("psnr", "PSNR (dB)", "higher", 2, "every image is identical to its reconstruction"),
    Measure("ssim", "SSIM", "higher", 4, "it takes sides of 11 pixels or more"),
    Measure("ms_ssim", "MS-SSIM", "higher", 4, "it takes sides of 161 pixels or more"),
    Measure("mae", "MAE", "lower", 4, ""),
    Measure("lpips", "LPIPS", "lower", 4, "the images are too small for its net"),
    Measure("rate", "rate (bpp)", "lower", 4, "the bottleneck has no rate"),
)
