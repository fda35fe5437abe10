"""Damaged images by the thousand: `BadFile` is the only exception that leaves the reader."""

from __future__ import annotations

import io
import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mutations import MOST_GROWTH, NIGHTLY_TIMES, most_memory, mutated
from PIL import Image

from flexvae_cli.engine.data.deep_png import deep_png_bytes
from flexvae_cli.engine.data.formats import readable
from flexvae_cli.engine.data.images import read_image
from flexvae_cli.engine.data.opening import BadFile, image_size
from flexvae_cli.engine.data.pam import pam_bytes

ROUNDS = 1430 * NIGHTLY_TIMES  # for each seed: 20,020, or 5,005,000
NOISE = np.random.default_rng(0).integers(0, 256, (24, 20, 4)).astype(np.uint8)
EXIF = Image.Exif()
EXIF[0x0112] = 6

PICTURES: dict[str, tuple[Image.Image, dict[str, Any]]] = {
    "jpeg": (Image.fromarray(NOISE[..., :3]), {"exif": EXIF}),
    "progressive.jpeg": (Image.fromarray(NOISE).convert("CMYK"), {"progressive": True}),
    "png": (Image.fromarray(NOISE), {"exif": EXIF}),
    "palette.png": (Image.fromarray(NOISE[..., 0]).convert("P"), {"transparency": 3}),
    "deep.png": (Image.fromarray(NOISE[..., 0].astype(np.uint16) * 257), {}),
    "webp": (Image.fromarray(NOISE), {"lossless": True}),
    "bmp": (Image.fromarray(NOISE[..., :3]), {}),
    "tiff": (Image.fromarray(NOISE[..., 0].astype(np.float32) / 255), {"exif": EXIF}),
    "deflate.tiff": (Image.fromarray(NOISE[..., :3]), {"compression": "tiff_deflate"}),
    "gif": (Image.fromarray(NOISE[..., :3]), {"save_all": True, "append_images": [Image.new("RGB", (20, 24))]}),
    "ppm": (Image.fromarray(NOISE[..., :3]), {}),
    "avif": (Image.fromarray(NOISE[..., :3]), {}),
}


def saved(name: str) -> bytes:
    """A picture in the format that the end of its name tells."""
    image, options = PICTURES[name]
    buffer = io.BytesIO()
    image.save(buffer, name.split(".")[-1], **options)
    return buffer.getvalue()


SEEDS = {name: saved(name) for name in PICTURES if name.split(".")[-1].upper() in readable()} | {
    "deep colour.png": deep_png_bytes(NOISE.astype(np.uint16) * 257),
    "pam": pam_bytes(NOISE.astype(np.uint16) * 257, 65535),
}


@pytest.mark.parametrize("name", SEEDS)
def test_only_bad_file_escapes(tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    path, rng, bad = tmp_path / "mutant", random.Random(name), list[str]()
    filters, before = list(warnings.filters), most_memory()
    for _ in range(ROUNDS):
        path.write_bytes(mutated(SEEDS[name], rng))
        channels = rng.randrange(1, 5)
        try:
            size = image_size(path, max_pixels=10**6)
            array = read_image(path, channels=channels, max_pixels=10**6, cover=rng.choice((None, (8, 8))))
            assert array.ndim == 3
            assert array.shape[2] == channels
            assert (array.shape[:2] == size) or min(array.shape[:2]) == 8
        except BadFile as error:
            bad.append(error.reason)
    assert 0 < len(bad) < ROUNDS
    assert most_memory() - before < MOST_GROWTH
    assert all(reason and reason.isprintable() for reason in bad)
    assert warnings.filters == filters
    out, err = capfd.readouterr()
    assert out == ""
    assert err == "" or "tiff" in name  # libtiff has its own say on stderr
