"""A folder of latents on its way back: verified through and through, then decoded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from flexvae_cli.api.trace import text
from flexvae_cli.engine.bottlenecks.quantized import QuantizedBottleneck
from flexvae_cli.engine.inference import BATCH_SIZE, decode_batch, runs
from flexvae_cli.engine.manifest import MANIFEST, LatentFile, LatentImage, Manifest, read_manifest
from flexvae_cli.engine.model import same_model
from flexvae_cli.engine.normalization import Normalization
from flexvae_cli.engine.packing import codes_of, packed_size, unpack, width_of
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
    form = form_of(model, folder, manifest)
    for file in manifest.files:
        _verify(folder, file, form)
    stored = {file.path: tuple(file.shape) for file in manifest.files}
    shapes = {path: form.latent_shape(model, shape) for path, shape in stored.items()}
    for image in manifest.images:
        if _latent_shape(model, image.size) != shapes[image.file]:
            height, width = image.size
            raise ModelError(
                f"{image.name} of {height} x {width} cannot have a latent of {text(stored[image.file])}",
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


@dataclass(frozen=True, slots=True)
class Numbers:
    """Latents as numbers, raw where there is no normalization."""

    normalization: Normalization | None
    key: str = "latents"

    def read(self, tensor: Tensor, file: LatentFile) -> Tensor | None:
        """The raw latents (n, c, h, w) of a file's tensor; None where it is not what the manifest says."""
        latents = tensor[None] if tensor.dim() == 3 else tensor  # a single one has no axis n of its own
        if latents.dtype != torch.float32 or latents.shape != (file.count, *file.shape):
            return None
        return latents if self.normalization is None else self.normalization.raw(latents)

    def latents(self, model: Model, read: Tensor) -> Tensor:  # noqa: ARG002
        """What `read` gave, as the decoder takes it."""
        return read

    def latent_shape(self, model: Model, shape: Shape) -> Shape | None:  # noqa: ARG002
        """The latent that an entry of a file, of `shape`, stands for."""
        return shape

    def says(self, file: LatentFile) -> str:
        """What the manifest says of the tensor."""
        return f"{text((file.count, *file.shape))} numbers of float32"


@dataclass(frozen=True, slots=True)
class Indices:
    """Latents as packed indices of a quantizer that has so many codes."""

    codes: int
    key: str = "indices"

    def read(self, tensor: Tensor, file: LatentFile) -> Tensor | None:
        """The indices (n, q, h, w) of a file's tensor; None where it is not what the manifest says."""
        packed, width = tensor[None] if tensor.dim() == 1 else tensor, width_of(self.codes)
        if packed.dtype != torch.uint8 or packed.shape != (file.count, packed_size(file.shape, width)):
            return None
        return torch.stack([unpack(each, file.shape, width) for each in packed])

    def latents(self, model: Model, read: Tensor) -> Tensor:
        """What `read` gave, as the decoder takes it."""
        with torch.inference_mode():
            return cast(QuantizedBottleneck, model.vae.bottleneck).from_indices(read.to(model.device))

    def latent_shape(self, model: Model, shape: Shape) -> Shape | None:
        """The latent that an entry of a file, of `shape`, stands for."""
        one = torch.zeros(1, shape[0], *(1 for _ in shape[1:]), dtype=torch.int64)
        try:
            return (self.latents(model, one).shape[1], *shape[1:])
        except (RuntimeError, IndexError, ValueError):  # another number of codes for each position
            return None

    def says(self, file: LatentFile) -> str:
        """What the manifest says of the tensor."""
        return f"{text((file.count, *file.shape))} packed indices below {self.codes:,}"


def form_of(model: Model, folder: Path, manifest: Manifest) -> Numbers | Indices:
    """What the latents of a folder are.

    Raises:
        ModelError: indices of another quantizer, or numbers that cannot be made raw.
    """
    if manifest.latents.value != "indices":
        return Numbers(normalization_of(model, folder, manifest))
    codes = codes_of(model)
    if codes is None or manifest.latents.dtype != f"uint{width_of(codes)}":
        raise ModelError(
            f"holds indices of type {manifest.latents.dtype}, which the bottleneck {model.net.bottleneck.code} "
            "does not give",
            where=str(folder / MANIFEST),
        )
    return Indices(codes)


def _latent_shape(model: Model, size: Shape) -> Shape | None:
    try:
        return model.latent_shape(size)
    except UsageError:  # there is no size from here up that the net can take
        return None


def _verify(folder: Path, file: LatentFile, form: Numbers | Indices) -> None:
    path = folder / file.path
    if path.resolve() != folder.resolve() / file.path:
        raise ModelError("is a link, which is not followed", where=str(path))
    with reading(path):
        if regular(path).stat().st_size != file.bytes or digest_of(path).sha256 != file.sha256:
            raise ModelError("is damaged or replaced: its content is not what the manifest records", where=str(path))
    read = _read(path, file, form)
    if read is None:
        raise ModelError(f"lacks '{form.key}', {form.says(file)}, as the manifest says", where=str(path))
    if isinstance(form, Indices) and int(read.max()) >= form.codes:
        raise ModelError(f"holds an index of {int(read.max()):,}; there are {form.codes:,} codes", where=str(path))
    if not bool(read.isfinite().all()):
        raise ModelError("holds latents that are not finite", where=str(path))


def _read(path: Path, file: LatentFile, form: Numbers | Indices) -> Tensor | None:
    """Raw latents (n, c, h, w), or indices (n, q, h, w), of a file of either layout."""
    tensor = read_tensors(path).get(form.key)
    return None if tensor is None else form.read(tensor, file)


def decode_latents(
    model: Model, folder: Path, manifest: Manifest, batch_size: int = BATCH_SIZE
) -> Iterator[tuple[LatentImage, Tensor]]:
    """Decode a folder that `verified_latents` found in order: images (c, h, w) in [-1, 1], as large as they went in."""
    form, files = form_of(model, folder, manifest), {file.path: file for file in manifest.files}

    @lru_cache(maxsize=OPEN_FILES)
    def opened(name: str) -> Tensor | None:
        return _read(folder / name, files[name], form)

    for run in runs(manifest.images, lambda image: model.net.fitting(image.size), batch_size):
        read = [opened(image.file) for image in run]
        entries = torch.stack([each[image.index] for each, image in zip(read, run, strict=True) if each is not None])
        z = form.latents(model, entries)
        yield from zip(run, decode_batch(model, z, [image.size for image in run]), strict=True)
