"""Pictures as files; the training of images with their resizing and colours stands in `engine/data/images.py`."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import torch

from flexvae_cli.api import Shape
from flexvae_cli.api.readers import About, Header, Reader, Reading
from flexvae_cli.engine.data.deep_png import deep_png_bytes
from flexvae_cli.engine.data.formats import is_image
from flexvae_cli.engine.data.images import GREY_OF_RGB, read_picture, require_channels, to_image
from flexvae_cli.engine.data.opening import image_size
from flexvae_cli.engine.data.pam import pam_bytes
from flexvae_cli.engine.data.readers.span import UNSTATED, Span, typed
from flexvae_cli.engine.data.tiff import tiff_bytes

MEASURED = (".tif", ".tiff", ".pfm")  # how files end that may hold numbers of any range


class Images(Reader):
    """See `flexvae_cli.builtin_readers.images`."""

    def __init__(self, span: Span = UNSTATED) -> None:
        self.span = span

    def finds(self, name: str, head: bytes) -> bool:
        return is_image(name, head)

    def header(self, path: Path, like: Shape) -> Header:
        require_channels(path, like[0])
        return Header((like[0], *image_size(path, max_pixels=sys.maxsize)))  # whoever asks knows how many may be

    def read(self, path: Path, like: Shape) -> Reading:
        require_channels(path, like[0])
        picture = read_picture(path, channels=like[0], max_pixels=sys.maxsize, span=self.span)
        data = picture.pixels
        return Reading(data, 0.0, 1.0 if data.dtype.kind == "f" else float(np.iinfo(data.dtype).max), picture.about)

    def suffix(self, name: str) -> str:
        if self.span.stated and name.lower().endswith(MEASURED):
            return ".tif"
        return ".pam" if name.lower().endswith(".pam") else ".png"

    def write(self, x: np.ndarray, about: About, suffix: str) -> bytes:
        if suffix == ".tif" and "dtype" in about:
            return _measured(x, about)
        white = 65535 if about.get("bits", 8) > 8 else 255
        pixels = np.rint((np.moveaxis(x, 0, -1).astype(np.float64) + 1) / 2 * white).clip(0, white)  # (h, w, c)
        if suffix == ".pam":
            return pam_bytes(pixels, white)
        if suffix == ".tif":
            return tiff_bytes(pixels.astype(np.uint16 if white == 65535 else np.uint8))
        if white == 65535:
            return deep_png_bytes(pixels.astype(np.uint16))
        file = io.BytesIO()
        to_image(torch.from_numpy(x)).save(file, "PNG")
        return file.getvalue()


def _measured(x: np.ndarray, about: About) -> bytes:
    """A grey TIFF of the numbers that its samples (c, h, w) stand for; three channels make one as on the way in."""
    grey = x[:1] if len(x) < 3 else np.tensordot(GREY_OF_RGB[:, 0], x[:3], 1)[None]
    inverted = about.get("white") == 0
    numbers = typed(-grey if inverted else grey, about["low"], about["high"], np.dtype(about["dtype"]))
    return tiff_bytes(np.moveaxis(numbers, 0, -1), white_is_zero=inverted)
