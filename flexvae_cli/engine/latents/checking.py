"""Whether a folder of latents is what its manifest says, and what is in it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flexvae_cli.api.trace import text
from flexvae_cli.engine.evaluation.channels import Moments
from flexvae_cli.engine.latents.containers import LABELS, LAYOUTS
from flexvae_cli.engine.latents.journal import FOLDER
from flexvae_cli.engine.latents.opening import open_latents, verified_file
from flexvae_cli.engine.latents.values import INDICES, STD, Row, Values
from flexvae_cli.engine.manifest import MANIFEST, Manifest, read_manifest
from flexvae_cli.engine.naming import TEMPORARY
from flexvae_cli.engine.normalization import Normalization
from flexvae_cli.errors import ModelError, Problem


@dataclass
class Latents:
    """A folder of latents and what its manifest says.

    Attributes:
        folder: the folder.
        manifest: its manifest.
        values: which numbers it holds.
    """

    folder: Path
    manifest: Manifest = field(init=False)
    values: Values = field(init=False)

    def __post_init__(self) -> None:
        self.manifest = read_manifest(self.folder)
        about = self.manifest.latents
        normalization = None
        if about.scaling == "normalized":
            channels = self.manifest.files[0].shape[0] if self.manifest.files else 0
            normalization = Normalization.of(about.statistics, channels, str(self.folder / MANIFEST))
        self.values = Values.of(about, normalization)

    def verify(self, weights_hash: str | None = None) -> Iterator[Problem | None]:
        """Read every file through and through; yields None for one that is sound, or what is wrong with it.

        At the end come files that nobody recorded, and, where `weights_hash` is given and differs, the model.
        """
        labels: dict[str, list[int]] = {file.path: [0] * file.count for file in self.manifest.files}
        for image in self.manifest.images:
            labels[image.file][image.index] = image.label
        for file in self.manifest.files:
            try:
                row = verified_file(self.folder, file, self.manifest.layout, self.values)
            except ModelError as error:
                yield from error.problems
            else:
                same = LABELS not in row or row[LABELS].tolist() == labels[file.path]
                wrong = Problem("has other labels than the manifest", str(self.folder / file.path))
                yield None if same else wrong
        for path in self._extra():
            yield Problem("is not in the manifest, and readers that take a whole folder would take it", str(path))
        made_by = self.manifest.model.weights_hash
        if weights_hash is not None and weights_hash != made_by:
            what = f"was made by another model (weights {made_by[:12]}, not {weights_hash[:12]})"
            yield Problem(what, str(self.folder / MANIFEST))

    def _extra(self) -> list[Path]:
        """Files that look like latents, or like the leftovers of an encode, and are not recorded."""
        known = {file.path for file in self.manifest.files}
        suffix = LAYOUTS[self.manifest.layout].suffix
        found = []
        for path in sorted(self.folder.rglob("*")):
            name = path.relative_to(self.folder).as_posix()
            left = name == FOLDER or path.name.startswith(TEMPORARY)
            if left or (path.suffix == suffix and name not in known and not name.startswith(f"{FOLDER}/")):
                found.append(path)
        return found

    def describe(self) -> Iterator[int | dict[str, Any]]:
        """Yields how many files were read, and last what `flexvae latents info` says.

        Raises:
            ModelError: a file is missing, or not what the manifest says.
        """
        statistics, kl = _Channels(), 0.0
        for done, file in enumerate(self.manifest.files, start=1):
            row = open_latents(self.folder, file, self.manifest.layout, self.values)
            if self.values.value != INDICES:
                statistics.add(self.values.numbers(row))
                kl += self._kl(row) if self.values.value == "moments" else 0.0
            yield done
        yield {**self._about(), "channels": statistics.values(), "kl_per_image": self._per_image(kl)}

    def _kl(self, row: Row) -> float:
        """Nats, summed over the latents of a file, from the standard normal to their posteriors."""
        mean, std = self.values.raw(row).double(), self.values.numbers(row, part=STD)
        normalization = self.values.normalization
        variance = (std if normalization is None else normalization.widened(std)).double().square()
        return float(0.5 * (mean.square() + variance - 1 - variance.clamp_min(1e-30).log()).sum())

    def _per_image(self, kl: float) -> float | None:
        return kl / len(self.manifest.images) if self.values.value == "moments" else None

    def _about(self) -> dict[str, Any]:
        manifest = self.manifest
        files = {file.path: file for file in manifest.files}
        shapes: dict[str, int] = {}
        labels = dict.fromkeys(manifest.labels, 0)
        for image in manifest.images:
            shape = text(tuple(files[image.file].shape))
            shapes[shape] = shapes.get(shape, 0) + 1
            labels[manifest.labels[image.label]] += 1
        stored = sum(file.bytes for file in manifest.files)
        pixels = sum(math.prod(image.size) for image in manifest.images)
        return {
            "path": str(self.folder),
            "layout": manifest.layout,
            "images": len(manifest.images),
            "failures": len(manifest.failures),
            "files": len(manifest.files),
            "bytes": stored,
            "bits_per_pixel": 8 * stored / pixels if pixels else None,
            "shapes": shapes,
            "labels": labels,
            "model": manifest.model.model_dump(),
            "latents": manifest.latents.model_dump(),
            "preprocessing": manifest.preprocessing,
        }


class _Channels:
    """Mean, deviation and range of every channel as it is stored, in float64."""

    def __init__(self) -> None:
        self.moments: Moments | None = None
        self.low = self.high = torch.empty(0)

    def add(self, latents: Tensor) -> None:
        rows = latents.transpose(0, 1).flatten(1).double()  # (c, n * positions)
        if self.moments is None:
            self.moments = Moments(len(rows))
            self.low, self.high = rows.amin(1), rows.amax(1)
        self.moments.add(rows.T)
        self.low, self.high = self.low.minimum(rows.amin(1)), self.high.maximum(rows.amax(1))

    def values(self) -> list[dict[str, float]]:
        if self.moments is None:
            return []
        columns = (self.moments.mean, self.moments.variance().sqrt(), self.low, self.high)
        keys = ("channel", "mean", "std", "min", "max")
        rows = zip(*(column.tolist() for column in columns), strict=True)
        return [dict(zip(keys, (index, *row), strict=True)) for index, row in enumerate(rows)]
