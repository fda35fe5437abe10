"""A folder of latents on its way back: verified through and through, then decoded."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from flexvae_cli.api.trace import text
from flexvae_cli.engine.bottlenecks.quantized import QuantizedBottleneck
from flexvae_cli.engine.inference import BATCH_SIZE, decode_batch, runs
from flexvae_cli.engine.latents.opening import open_latents, verified_file
from flexvae_cli.engine.latents.values import INDICES, Row, Values
from flexvae_cli.engine.manifest import MANIFEST, LatentFile, LatentImage, Manifest, read_manifest
from flexvae_cli.engine.model import same_model
from flexvae_cli.engine.normalization import Normalization
from flexvae_cli.engine.packing import codes_of, unpack, width_of
from flexvae_cli.errors import ModelError, UsageError

if TYPE_CHECKING:
    from flexvae_cli.api import Shape
    from flexvae_cli.engine.model import Model

OPEN_FILES = 64  # mapped into memory at a time


def verified_latents(model: Model, folder: Path) -> Manifest:
    """Read a folder of latents through and through before anything is made of it.

    Raises:
        ModelError: another model made them, a file is missing, damaged or not what the manifest says, or they are
            normalized and the manifest lacks what undoes it.
    """
    manifest = read_manifest(folder)
    same_model(model, manifest.model.weights_hash, str(folder))
    values = values_of(model, folder, manifest)
    for file in manifest.files:
        row = verified_file(folder, file, manifest.layout, values)
        if values.value == INDICES:
            _verify_codes(model, folder / file.path, file, values, row)
    stored = {file.path: tuple(file.shape) for file in manifest.files}
    shapes = {path: _latent_of(model, values, shape) for path, shape in stored.items()}
    for image in manifest.images:
        if _latent_shape(model, image.size) != shapes[image.file]:
            raise ModelError(
                f"{image.name} of {text(image.size)} cannot have a latent of {text(stored[image.file])}",
                where=str(folder / MANIFEST),
            )
    return manifest


def normalization_of(model: Model, folder: Path, manifest: Manifest) -> Normalization | None:
    """What was done to the latents of a folder, None where they are raw.

    The numbers are those that the manifest records. Those that the model carries today are not asked: the latents are
    bound to its weights, and its statistics may have been measured anew since.

    Raises:
        ModelError: they are normalized, and what is recorded cannot undo it.
    """
    if manifest.latents.scaling == "raw":
        return None
    return Normalization.of(manifest.latents.statistics, model.net.latent_shape[0], str(folder / MANIFEST))


def values_of(model: Model, folder: Path, manifest: Manifest) -> Values:
    """What the latents of a folder are.

    Raises:
        ModelError: indices of another quantizer, or numbers that cannot be made raw.
    """
    if manifest.latents.value != INDICES:
        return Values.of(manifest.latents, normalization_of(model, folder, manifest))
    codes = codes_of(model)
    if codes is None or manifest.latents.dtype != f"uint{width_of(codes)}":
        raise ModelError(
            f"holds indices of type {manifest.latents.dtype}, which the bottleneck {model.net.bottleneck.code} "
            "does not give",
            where=str(folder / MANIFEST),
        )
    return Values.of(manifest.latents, None)


def _latent_shape(model: Model, size: Shape) -> Shape | None:
    try:
        return model.latent_shape(size) if len(size) == len(model.net.shape) - 1 else None
    except UsageError:  # there is no size from here up that the net can take
        return None


def _latent_of(model: Model, values: Values, shape: Shape) -> Shape | None:
    """The latent that an entry of a file, of `shape`, stands for."""
    if values.value != INDICES:
        return shape
    one = torch.zeros(1, shape[0], *(1 for _ in shape[1:]), dtype=torch.int64)
    try:
        return (_from_indices(model, one).shape[1], *shape[1:])
    except (RuntimeError, IndexError, ValueError):  # another number of codes for each position
        return None


@torch.inference_mode()
def _from_indices(model: Model, indices: Tensor) -> Tensor:
    return cast(QuantizedBottleneck, model.vae.bottleneck).from_indices(indices.to(model.device))


def _verify_codes(model: Model, path: Path, file: LatentFile, values: Values, row: Row) -> None:
    codes = codes_of(model)
    assert codes is not None
    assert values.width is not None
    for key in values.keys:
        most = max(int(unpack(each, file.shape, values.width).max()) for each in row[key])
        if most >= codes:
            raise ModelError(f"holds an index of {most:,}; there are {codes:,} codes", where=str(path))


def decode_latents(
    model: Model, folder: Path, manifest: Manifest, batch_size: int = BATCH_SIZE
) -> Iterator[tuple[LatentImage, Tensor]]:
    """Decode a folder that `verified_latents` found in order: images (c, h, w) in [-1, 1], as large as they went in."""
    values, files = values_of(model, folder, manifest), {file.path: file for file in manifest.files}
    opened = lru_cache(maxsize=OPEN_FILES)(lambda name: open_latents(folder, files[name], manifest.layout, values))

    for run in runs(manifest.images, lambda image: model.net.fitting(image.size), batch_size):
        rows = [opened(image.file) for image in run]
        if values.width is None:
            latents = [
                values.raw({key: tensor[image.index : image.index + 1] for key, tensor in row.items()})
                for row, image in zip(rows, run, strict=True)
            ]
            z = torch.cat(latents)
        else:
            packed = [(row[INDICES][image.index], files[image.file]) for row, image in zip(rows, run, strict=True)]
            z = _from_indices(model, torch.stack([unpack(p, file.shape, values.width) for p, file in packed]))
        yield from zip(run, decode_batch(model, z, [image.size for image in run]), strict=True)
