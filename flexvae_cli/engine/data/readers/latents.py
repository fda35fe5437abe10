"""Latents of a first autoencoder as samples of a second: of a folder that `flexvae encode` wrote, and no other."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Literal

import numpy as np
import torch
from safetensors.torch import save

from flexvae_cli.api import Shape
from flexvae_cli.api.readers import About, BadFile, Header, Reader, Reading
from flexvae_cli.api.trace import text
from flexvae_cli.engine.latents.dataset import LatentDataset
from flexvae_cli.engine.latents.values import LATENTS
from flexvae_cli.engine.manifest import MANIFEST
from flexvae_cli.errors import ModelError

SUFFIX = ".safetensors"
OPEN = 8  # folders at a time
OPENING = Lock()  # headers are looked at in threads, and each would read the manifest


class Latents(Reader):
    """See `flexvae_cli.builtin_readers.latents`. The path of a sample is `FOLDER/manifest.json/NUMBER`."""

    def __init__(self, scaling: Literal["normalized", "raw"], *, draw: bool) -> None:
        self.scaling = scaling
        self.draw = draw

    def finds(self, name: str, head: bytes) -> bool:  # noqa: ARG002 - the end of the name decides
        return name.endswith(SUFFIX)

    def listed(self, source: Path) -> Sequence[tuple[str, Path]]:
        """The latents of a folder, once all of it was read and is what its manifest says.

        Raises:
            ModelError: the manifest is damaged or was edited, a file is not the one that it records, there are no
                statistics to normalize by, or what is stored are indices.
        """
        manifest = source / MANIFEST
        if not manifest.exists():
            return []
        with OPENING:
            latents = _verified(source, _stamp(manifest), self.scaling)
        return [(name + SUFFIX, manifest / str(number)) for number, name in enumerate(latents.names)]

    def header(self, path: Path, like: Shape) -> Header:
        latents, number = self._found(path)
        shape = latents.shape_of(number)
        if len(shape) != len(like) or shape[0] != like[0]:
            raise BadFile(path, f"is a latent of {text(shape)}; wanted are {like[0]} channels, {len(like) - 1} axes")
        return Header(shape)

    def read(self, path: Path, like: Shape) -> Reading:
        self.header(path, like)
        latents, number = self._found(path)
        try:
            mean, deviation = latents.moments(number)
        except ModelError as error:
            raise BadFile(path, error.problems[0].what) from error
        image, normalization = latents.image(number), latents.normalization
        about = {
            "scaling": self.scaling,
            "statistics": None if normalization is None else normalization.statistics(),
            "weights_hash": latents.weights_hash,
            "name": image.name,
            "size": list(image.size),
        }
        spread = _planes_last(deviation) if self.draw and deviation is not None else None
        return Reading(_planes_last(mean), -1.0, 1.0, about, spread, clipped=False)

    def suffix(self, name: str) -> str:  # noqa: ARG002 - whatever they are called
        return SUFFIX

    def write(self, x: np.ndarray, about: About, suffix: str) -> bytes:  # noqa: ARG002 - there is one kind
        said = {"scaling": self.scaling, **about}
        return save({LATENTS: torch.from_numpy(np.ascontiguousarray(x))}, {"flexvae": json.dumps(said)})

    def _found(self, path: Path) -> tuple[LatentDataset, int]:
        """The folder that a path leads into, and the number of the latent there.

        Raises:
            BadFile: it is no path that `listed` gave, or the folder is not what it was.
        """
        manifest = path.parent
        if manifest.name != MANIFEST or not path.name.isdecimal():
            raise BadFile(path, f"is not in the {MANIFEST} of a folder that `flexvae encode` wrote")
        try:
            with OPENING:
                latents = _opened(manifest.parent, _stamp(manifest), self.scaling)
        except ModelError as error:
            raise BadFile(path, error.problems[0].what) from error
        if int(path.name) >= len(latents):
            raise BadFile(path, f"is not there: the folder holds {len(latents):,} latents")
        return latents, int(path.name)


@lru_cache(maxsize=OPEN)
def _opened(
    folder: Path,
    stamp: tuple[int, int],  # noqa: ARG001 - another one, another folder
    scaling: Literal["normalized", "raw"],
) -> LatentDataset:
    return LatentDataset(folder, scaling=scaling)


@lru_cache(maxsize=OPEN)
def _verified(folder: Path, stamp: tuple[int, int], scaling: Literal["normalized", "raw"]) -> LatentDataset:
    latents = _opened(folder, stamp, scaling)
    latents.require_numbers()
    latents.verify()
    return latents


def _stamp(manifest: Path) -> tuple[int, int]:
    """What changes with the content of a manifest.

    Raises:
        ModelError: it is gone.
    """
    try:
        status = manifest.stat()
    except OSError as error:
        raise ModelError(f"is gone: {(error.strerror or str(error)).lower()}", where=str(manifest)) from error
    return status.st_mtime_ns, status.st_size


def _planes_last(z: torch.Tensor) -> np.ndarray:
    return np.moveaxis(z.numpy(), 0, -1)
