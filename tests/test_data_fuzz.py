"""Damaged images by the thousand: `BadFile` is the only exception that leaves the reader."""

from __future__ import annotations

import io
import os
import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flexvae_cli.engine.data.images import read_image
from flexvae_cli.engine.data.opening import BadFile, image_size

ROUNDS = 1700 * (250 if os.environ.get("FLEXVAE_NIGHTLY") == "1" else 1)  # for each seed: 20,400, or 5,100,000
MOST_GROWTH = 200 << 20  # bytes
NOISE = np.random.default_rng(0).integers(0, 256, (24, 20, 4)).astype(np.uint8)
EXIF = Image.Exif()
EXIF[0x0112] = 6

SEEDS: dict[str, tuple[Image.Image, dict[str, Any]]] = {
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


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Flip, overwrite, repeat or cut; half of the damage in the first 64 bytes, where the header is."""
    damaged = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8, 40))):
        at = rng.randrange(min(64, len(damaged)) if rng.random() < 0.5 else len(damaged))
        damaged[at] = rng.choice((damaged[at] ^ 1 << rng.randrange(8), 0, 255, rng.randrange(256)))
    action, at = rng.randrange(6), rng.randrange(len(damaged))
    if action == 0:
        del damaged[at:]
    elif action == 1:
        damaged[at:at] = damaged[: rng.randrange(64)]
    return bytes(damaged)


def most_memory() -> int:
    """The most bytes that this process has had so far; 0 where that is not told."""
    try:
        import resource
    except ImportError:
        return 0
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@pytest.mark.parametrize("name", SEEDS)
def test_only_bad_file_escapes(tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    image, options = SEEDS[name]
    buffer = io.BytesIO()
    image.save(buffer, name.split(".")[-1], **options)
    path, rng, bad = tmp_path / "mutant", random.Random(name), list[str]()
    filters, before = list(warnings.filters), most_memory()
    for _ in range(ROUNDS):
        path.write_bytes(mutated(buffer.getvalue(), rng))
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
