"""Latents on their way to disk: safetensors in the layout that LightningDiT trains from, or one file per image."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors.torch import save
from torch import Tensor

from flexvae_cli.api.trace import text
from flexvae_cli.engine.data.dataset import Fault
from flexvae_cli.engine.inference import BATCH_SIZE, Sample, encode_batch, runs
from flexvae_cli.engine.manifest import (
    MANIFEST,
    Failure,
    LatentFile,
    LatentImage,
    Latents,
    Manifest,
    Source,
    manifest_bytes,
    read_manifest,
)
from flexvae_cli.engine.naming import OutputFolder
from flexvae_cli.errors import ModelError

if TYPE_CHECKING:
    from flexvae_cli.api import Shape
    from flexvae_cli.engine.model import Model

SHARD_SIZE = 1024  # latents
ROOM = 1 << 28  # bytes of latents held back, over all series, before the longest one is written early
STALE = re.compile(r"[0-9]+(x[0-9]+)+/latents_rank[0-9]{2}_shard[0-9]{3,}\.safetensors")


@dataclass(frozen=True, slots=True)
class Latent:
    """The latent of one image, float32 on the host.

    Attributes:
        name: of the image.
        size: its (height, width).
        label: the number of its top-level folder.
        z: (c, h, w).
        mirrored: the latent of the image mirrored left to right, where that is wanted.
    """

    name: str
    size: tuple[int, int]
    label: int
    z: Tensor
    mirrored: Tensor | None = None


class ShardWriter:
    """Many latents per file: a series of shards, in a folder of its own, for every shape of latent.

    Args:
        folder: where to write.
        size: latents per shard.
        room: bytes of latents to hold in memory; beyond, a shard is written before it is full.
    """

    def __init__(self, folder: OutputFolder, size: int = SHARD_SIZE, room: int = ROOM) -> None:
        self.folder = folder
        self.size = size
        self.room = room
        self.files: list[LatentFile] = []
        self._pending: dict[Shape, list[Latent]] = {}
        self._written: Counter[Shape] = Counter()

    def add(self, latent: Latent) -> LatentImage:
        """Take a latent in; returns where it will be found."""
        shape = tuple(latent.z.shape)
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
        tensors = {"latents": torch.stack([each.z for each in latents])}  # (n, c, h, w)
        if mirrored := [each.mirrored for each in latents if each.mirrored is not None]:
            tensors["latents_flip"] = torch.stack(mirrored)
        tensors["labels"] = torch.tensor([each.label for each in latents], dtype=torch.int64)
        digest = self.folder.write(path, save(tensors, {"format": "pt"}))
        self.files.append(
            LatentFile(path=path, sha256=digest.sha256, bytes=digest.bytes, count=len(latents), shape=shape)
        )
        self._written[shape] += 1


class FileWriter:
    """One file per image, in the folders that the images are in.

    Args:
        folder: where to write.
        names: the output name of every image.
        weights_hash: sha256 of the model's weights file.
    """

    def __init__(self, folder: OutputFolder, names: dict[str, str], weights_hash: str) -> None:
        self.folder = folder
        self.names = names
        self.weights_hash = weights_hash
        self.files: list[LatentFile] = []

    def add(self, latent: Latent) -> LatentImage:
        """Write a latent; returns where it is found."""
        path, shape = self.names[latent.name], tuple(latent.z.shape)
        tensors = {"latents": latent.z}  # (c, h, w)
        if latent.mirrored is not None:
            tensors["latents_flip"] = latent.mirrored
        about = {"weights_hash": self.weights_hash, "size": latent.size, "latents": "raw"}
        # one key: safetensors writes several in an order that changes from run to run
        digest = self.folder.write(path, save(tensors, {"flexvae": json.dumps(about)}))
        self.files.append(LatentFile(path=path, sha256=digest.sha256, bytes=digest.bytes, count=1, shape=shape))
        return LatentImage(name=latent.name, file=path, index=0, size=latent.size, label=latent.label)

    def close(self) -> None:
        """Nothing is held back."""


def _bytes_of(latent: Latent) -> int:
    return latent.z.nbytes * (1 if latent.mirrored is None else 2)


def labels_of(names: Iterable[str]) -> list[str]:
    """The top-level folders of a source, sorted bytewise; `""` stands for images that are in none."""
    folders = {name.partition("/")[0] if "/" in name else "" for name in names}
    return sorted(folders, key=lambda name: name.encode("utf-8", "surrogateescape"))


def encode_images(
    model: Model,
    samples: Iterable[Sample],
    writer: ShardWriter | FileWriter,
    *,
    labels: Sequence[str],
    flip: bool = False,
    batch_size: int = BATCH_SIZE,
) -> Iterator[LatentImage]:
    """Encode images and write their latents; yields the place of each.

    Args:
        model: what encodes.
        samples: the images.
        writer: what becomes of the latents.
        labels: what `labels_of` gave for the whole source.
        flip: encode the mirrored images too.
        batch_size: most images of a batch.

    Raises:
        ModelError: the model gives latents that are not finite.
    """
    number = {label: index for index, label in enumerate(labels)}
    for run in runs(samples, lambda sample: model.net.fitting(sample.size), batch_size):
        straight = _finite(model, run, encode_batch(model, [s.x for s in run]))
        flipped = _finite(model, run, encode_batch(model, [s.x.flip(-1) for s in run])) if flip else None
        for index, sample in enumerate(run):
            label = number[sample.name.partition("/")[0] if "/" in sample.name else ""]
            mirrored = flipped[index] if flipped is not None else None
            yield writer.add(Latent(sample.name, sample.size, label, straight[index], mirrored))
    writer.close()


def _finite(model: Model, run: Sequence[Sample], latents: Tensor) -> Tensor:
    """Latents (b, c, h, w) as float32 on the host."""
    latents = latents.to("cpu", torch.float32)
    if not bool(latents.isfinite().all()):
        bad = next(sample for sample, z in zip(run, latents, strict=True) if not bool(z.isfinite().all()))
        raise ModelError(f"gives latents of {bad.name} that are not finite", where=str(model.path))
    return latents


def make_manifest(
    model: Model,
    layout: Literal["shards", "files"],
    writer: ShardWriter | FileWriter,
    images: Sequence[LatentImage],
    faults: Sequence[Fault],
    *,
    labels: Sequence[str],
    flip: bool,
) -> Manifest:
    """What `manifest.json` will say."""
    about: dict[str, Any] = model.description
    return Manifest(
        layout=layout,
        model=Source(
            weights_hash=model.weights_hash,
            bottleneck=about["bottleneck"],
            input=list(about["input"]),
            plugins=about.get("plugins", {}),
        ),
        latents=Latents(
            value="mean" if model.net.bottleneck.spec.name == "KL" else "output",
            flip=flip,
            statistics=about.get("latents", {}),
        ),
        preprocessing=about.get("preprocessing", {}),
        labels=list(labels),
        files=writer.files,
        images=list(images),
        failures=[Failure(name=fault.name, reason=fault.reason) for fault in faults],
    )


def publish_manifest(folder: OutputFolder, manifest: Manifest) -> None:
    """Write the manifest, which says that the encode is complete."""
    folder.write(MANIFEST, manifest_bytes(manifest))


def discard_latents(folder: OutputFolder) -> None:
    """Remove the latents of an earlier encode, the manifest first, so that no reader takes old ones for new."""
    try:
        old = [file.path for file in read_manifest(folder.root).files if file.path.endswith(".safetensors")]
    except ModelError:  # there is none, or it cannot be trusted to name what may be removed
        old = []
    shards = (path.relative_to(folder.root).as_posix() for path in folder.root.glob("*/latents_rank*.safetensors"))
    for name in dict.fromkeys([MANIFEST, *old, *filter(STALE.fullmatch, shards)]):
        folder.remove(name)
