"""A folder of latents on its way back: verified through and through, then decoded."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from flexvae_cli.api.trace import text
from flexvae_cli.engine.inference import BATCH_SIZE, decode_batch, runs
from flexvae_cli.engine.manifest import MANIFEST, LatentFile, LatentImage, Manifest, read_manifest
from flexvae_cli.engine.model import same_model
from flexvae_cli.engine.normalization import Normalization
from flexvae_cli.engine.reading import digest_of, reading, regular
from flexvae_cli.engine.tensorfiles import read_tensors
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
    normalization = normalization_of(model, folder, manifest)
    for file in manifest.files:
        _verify(folder, file, normalization)
    shapes = {file.path: tuple(file.shape) for file in manifest.files}
    for image in manifest.images:
        if _latent_shape(model, image.size) != shapes[image.file]:
            height, width = image.size
            raise ModelError(
                f"{image.name} of {height} x {width} cannot have a latent of {text(shapes[image.file])}",
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


def _latent_shape(model: Model, size: Shape) -> Shape | None:
    try:
        return model.latent_shape(size)
    except UsageError:  # there is no size from here up that the net can take
        return None


def _verify(folder: Path, file: LatentFile, normalization: Normalization | None) -> None:
    path = folder / file.path
    if path.resolve() != folder.resolve() / file.path:
        raise ModelError("is a link, which is not followed", where=str(path))
    with reading(path):
        if regular(path).stat().st_size != file.bytes or digest_of(path).sha256 != file.sha256:
            raise ModelError("is damaged or replaced: its content is not what the manifest records", where=str(path))
    latents = _latents_in(path)
    if latents is None or latents.dtype != torch.float32 or latents.shape != (file.count, *file.shape):
        wanted = text((file.count, *file.shape))
        raise ModelError(f"lacks 'latents', {wanted} numbers of float32, as the manifest says", where=str(path))
    if not bool(_raw(latents, normalization).isfinite().all()):
        raise ModelError("holds latents that are not finite", where=str(path))


def _raw(latents: Tensor, normalization: Normalization | None) -> Tensor:
    return latents if normalization is None else normalization.raw(latents)


def _latents_in(path: Path) -> Tensor | None:
    """The latents (n, c, h, w) of a file of either layout; a single one has no axis n of its own."""
    latents = read_tensors(path).get("latents")
    return latents[None] if latents is not None and latents.dim() == 3 else latents


def decode_latents(
    model: Model, folder: Path, manifest: Manifest, batch_size: int = BATCH_SIZE
) -> Iterator[tuple[LatentImage, Tensor]]:
    """Decode a folder that `verified_latents` found in order: images (c, h, w) in [-1, 1], as large as they went in."""
    normalization = normalization_of(model, folder, manifest)
    opened = lru_cache(maxsize=OPEN_FILES)(_latents_in)
    for run in runs(manifest.images, lambda image: model.net.fitting(image.size), batch_size):
        latents = [opened(folder / image.file) for image in run]
        z = torch.stack([each[image.index] for each, image in zip(latents, run, strict=True) if each is not None])
        z = _raw(z, normalization)
        yield from zip(run, decode_batch(model, z, [image.size for image in run]), strict=True)
