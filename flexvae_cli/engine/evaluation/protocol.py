"""How something was measured: two results can be compared where all of this is the same."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from flexvae_cli.api.readers import file_of
from flexvae_cli.engine.metrics import MS_SSIM_SIDE, SSIM_WINDOW
from flexvae_cli.engine.reading import digest_of, reading
from flexvae_cli.errors import DataError, ModelError

if TYPE_CHECKING:
    from pathlib import Path

    from flexvae_cli.engine.data.sources import Item
    from flexvae_cli.engine.evaluation.measuring import Instruments
    from flexvae_cli.engine.model import Model

WINDOW = f"Gaussian of {SSIM_WINDOW} pixels, deviation 1.5, inside the image, mean over channels"


def protocol_of(model: Model, items: Iterable[Item], instruments: Instruments) -> dict[str, Any]:
    """The stamp of a result, of JSON values.

    Args:
        model: what was measured.
        items: the images that it was measured on.
        instruments: what it was measured with.
    """
    how = model.description.get("preprocessing", {})
    count, digest = digest_of_images(items)
    return {
        "data": {"images": count, "sha256": digest},
        "channels": model.net.shape[0],
        "background": how.get("background", "#ffffff"),
        "exif": how.get("exif", True),
        "resize": "none",
        "crop": "none; whole images, padded to what the net takes and cropped back",
        "latent": "posterior mean, or the bottleneck's output where it has no posterior",
        "range": "clamped to [0, 1]",
        "rounding": instruments.rounding,
        "ssim": WINDOW,
        "ms_ssim": f"five scales from {MS_SSIM_SIDE} pixels on, each: {WINDOW}",
        "lpips": instruments.lpips and instruments.lpips.stamp,
        "rfid": instruments.fid and instruments.fid.stamp,
        "precision": "fp32",
        "device": model.device.type,
    }


def digest_of_images(items: Iterable[Item]) -> tuple[int, str]:
    """How many images there are, and the sha256 over their names and contents, in order.

    Raises:
        DataError: a file has vanished since it was read.
    """
    digest, count = hashlib.sha256(), 0
    for item in items:
        name = os.fsencode(item.name)
        digest.update(len(name).to_bytes(8, "little") + name + _content(item.path))
        count += 1
    return count, digest.hexdigest()


def _content(path: Path) -> bytes:
    file = file_of(path)
    try:
        with reading(file):
            return _digest_now(path) if file == path else _digest(file, file.stat().st_mtime_ns)
    except ModelError as error:
        raise DataError(*error.problems) from None


def _digest_now(path: Path) -> bytes:
    return bytes.fromhex(digest_of(path).sha256)


@lru_cache(maxsize=1)
def _digest(path: Path, when: int) -> bytes:  # noqa: ARG001 - at another time, another content
    return _digest_now(path)
