"""Colours mean sRGB: an image that carries another colour profile is converted."""

from __future__ import annotations

from functools import lru_cache
from io import BytesIO

from PIL import Image, ImageCms, features

CONVERTED = {"RGB": "RGB", "RGBA": "RGBA", "CMYK": "RGB"}


def to_srgb(image: Image.Image) -> Image.Image:
    """The image in sRGB where it brings a colour profile of its own; unchanged where it brings none.

    A profile that is damaged or of another kind than the pixels is ignored, as browsers do.
    """
    transform = _transform_of(image)
    return image if transform is None else ImageCms.applyTransform(image, transform) or image


def is_srgb(image: Image.Image) -> bool:
    """Whether `to_srgb` leaves an image as it is."""
    return _transform_of(image) is None


def _transform_of(image: Image.Image) -> ImageCms.ImageCmsTransform | None:
    profile = image.info.get("icc_profile")
    return _transform(profile, image.mode) if profile and image.mode in CONVERTED else None


@lru_cache(maxsize=16)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    if not features.check("littlecms2"):
        return None
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        if "srgb" in ImageCms.getProfileDescription(source).lower():
            return None
        return ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, CONVERTED[mode])
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
        return None
