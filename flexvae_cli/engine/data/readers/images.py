"""Pictures, by Pillow; the training of images with their resizing and colours stands in `engine/data/images.py`."""

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
from flexvae_cli.engine.data.images import read_image, require_channels, to_image
from flexvae_cli.engine.data.opening import image_size
from flexvae_cli.engine.data.pam import pam_bytes


class Images(Reader):
    """See `flexvae_cli.builtin_readers.images`."""

    def finds(self, name: str, head: bytes) -> bool:
        return is_image(name, head)

    def header(self, path: Path, like: Shape) -> Header:
        require_channels(path, like[0])
        return Header((like[0], *image_size(path, max_pixels=sys.maxsize)))  # whoever asks knows how many may be

    def read(self, path: Path, like: Shape) -> Reading:
        require_channels(path, like[0])
        data = read_image(path, channels=like[0], max_pixels=sys.maxsize)
        about = {"bits": 16} if data.dtype == np.uint16 else {}
        return Reading(data, 0.0, 1.0 if data.dtype.kind == "f" else float(np.iinfo(data.dtype).max), about)

    def suffix(self, name: str) -> str:
        return ".pam" if name.lower().endswith(".pam") else ".png"

    def write(self, x: np.ndarray, about: About, suffix: str) -> bytes:
        white = 65535 if about.get("bits", 8) > 8 else 255
        pixels = np.rint((np.moveaxis(x, 0, -1).astype(np.float64) + 1) / 2 * white).clip(0, white)  # (h, w, c)
        if suffix == ".pam":
            return pam_bytes(pixels, white)
        if white == 65535:
            return deep_png_bytes(pixels.astype(np.uint16))
        file = io.BytesIO()
        to_image(torch.from_numpy(x)).save(file, "PNG")
        return file.getvalue()
