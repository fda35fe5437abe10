"""Files of latents: safetensors in the layout that LightningDiT trains from, or one file per image."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save
from torch import Tensor

from flexvae_cli.api.trace import text
from flexvae_cli.engine.manifest import LatentFile, LatentImage
from flexvae_cli.engine.naming import OutputFolder

if TYPE_CHECKING:
    from flexvae_cli.api import Shape

SHARD_SIZE = 1024  # latents
ROOM = 1 << 28  # bytes of latents held back, over all series, before the longest one is written early
About = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Latent:
    """The latent of one image, on the host.

    Attributes:
        name: of the image.
        size: its (height, width).
        label: the number of its top-level folder.
        z: float32 (c, h, w), or packed indices, uint8 (bytes,).
        mirrored: the latent of the image mirrored left to right, where that is wanted.
        grid: (q, h, w), the shape of the indices, where `z` is these.
    """

    name: str
    size: tuple[int, int]
    label: int
    z: Tensor
    mirrored: Tensor | None = None
    grid: Shape | None = None

    @property
    def shape(self) -> Shape:
        """(c, h, w) of a latent, (q, h, w) of indices."""
        return tuple(self.z.shape) if self.grid is None else self.grid

    @property
    def key(self) -> str:
        """What its tensor is called in a file."""
        return "latents" if self.grid is None else "indices"


class ShardWriter:
    """Many latents per file: a series of shards, in a folder of its own, for every shape of latent.

    Args:
        folder: where to write.
        size: latents per shard.
        room: bytes of latents to hold in memory; beyond, a shard is written before it is full.
        about: what every file says of itself, see `about_latents`.
    """

    def __init__(
        self, folder: OutputFolder, size: int = SHARD_SIZE, room: int = ROOM, *, about: About = MappingProxyType({})
    ) -> None:
        self.folder = folder
        self.about = about
        self.size = size
        self.room = room
        self.files: list[LatentFile] = []
        self._pending: dict[Shape, list[Latent]] = {}
        self._written: Counter[Shape] = Counter()

    def add(self, latent: Latent) -> LatentImage:
        """Take a latent in; returns where it will be found."""
        shape = latent.shape
        series = self._pending.setdefault(shape, [])
        series.append(latent)
        place = LatentImage(
            name=latent.name, file=self._path(shape), index=len(series) - 1, size=latent.size, label=latent.label
        )
        if len(series) == self.size:
            self._write(shape)
        elif sum(len(s) * _bytes_of(s[0]) for s in self._pending.values()) > self.room:
            self._write(max(self._pending, key=lambda s: len(self._pending[s]) * _bytes_of(self._pending[s][0])))
        return place

    def close(self) -> None:
        """Write what is held back."""
        for shape in sorted(self._pending):
            self._write(shape)

    def _path(self, shape: Shape) -> str:
        return f"{text(shape)}/latents_rank00_shard{self._written[shape]:03d}.safetensors"

    def _write(self, shape: Shape) -> None:
        latents, path = self._pending.pop(shape), self._path(shape)
        key = latents[0].key
        tensors = {key: torch.stack([each.z for each in latents])}  # (n, c, h, w), or (n, bytes)
        if mirrored := [each.mirrored for each in latents if each.mirrored is not None]:
            tensors[f"{key}_flip"] = torch.stack(mirrored)
        tensors["labels"] = torch.tensor([each.label for each in latents], dtype=torch.int64)
        digest = self.folder.write(path, save(tensors, _metadata(self.about)))
        self.files.append(
            LatentFile(path=path, sha256=digest.sha256, bytes=digest.bytes, count=len(latents), shape=shape)
        )
        self._written[shape] += 1


class FileWriter:
    """One file per image, in the folders that the images are in.

    Args:
        folder: where to write.
        names: the output name of every image.
        about: what every file says of itself, see `about_latents`.
    """

    def __init__(self, folder: OutputFolder, names: dict[str, str], *, about: About = MappingProxyType({})) -> None:
        self.folder = folder
        self.names = names
        self.about = about
        self.files: list[LatentFile] = []

    def add(self, latent: Latent) -> LatentImage:
        """Write a latent; returns where it is found."""
        path, shape = self.names[latent.name], latent.shape
        tensors = {latent.key: latent.z}  # (c, h, w), or (bytes,)
        if latent.mirrored is not None:
            tensors[f"{latent.key}_flip"] = latent.mirrored
        digest = self.folder.write(path, save(tensors, _metadata({**self.about, "size": latent.size})))
        self.files.append(LatentFile(path=path, sha256=digest.sha256, bytes=digest.bytes, count=1, shape=shape))
        return LatentImage(name=latent.name, file=path, index=0, size=latent.size, label=latent.label)

    def close(self) -> None:
        """Nothing is held back."""


def _metadata(about: About) -> dict[str, str]:
    # one key: safetensors writes several in an order that changes from run to run
    return {"flexvae": json.dumps(dict(about))}


def _bytes_of(latent: Latent) -> int:
    return latent.z.nbytes * (1 if latent.mirrored is None else 2)
