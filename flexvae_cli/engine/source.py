"""A config's images, listed, looked at, and split into those to train on and those held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor

from flexvae_cli import plugins
from flexvae_cli.api.readers import ReaderSpec
from flexvae_cli.api.trace import Shape
from flexvae_cli.config.settings import DataTable
from flexvae_cli.engine.data.buckets import usable
from flexvae_cli.engine.data.dataset import EvaluationImages, Fault, Sample, TrainingImages
from flexvae_cli.engine.data.files import (
    IMAGES,
    Chosen,
    FilePreparation,
    choose,
    found_in,
    made,
    samples_of,
    usable_files,
)
from flexvae_cli.engine.data.opening import BadFile
from flexvae_cli.engine.data.preparation import Preparation
from flexvae_cli.engine.data.readers.images import Images
from flexvae_cli.engine.data.readers.span import UNSTATED
from flexvae_cli.engine.data.sources import Item, list_images, split
from flexvae_cli.errors import DataError, Problem, UsageError
from flexvae_cli.paths import shown
from flexvae_cli.registry import Registered
from flexvae_cli.samples import MOST_AXES, MOST_CHANNELS

STRIP = 8  # images that every preview shows and latent statistics are measured on


@dataclass(frozen=True)
class Source:
    """What there is to train on.

    Attributes:
        training: the training samples.
        validation: the samples that are held out; None where validation is off.
        strip: the first validation samples, or of the training images where there are none, (b, c, h, w).
        bad: the files that cannot be used, as far as is known before training.
        fingerprint: hash of the names of the training images, and of their buckets; the sample order follows from them.
        reader: what a model records of how samples are read: empty for images that state their range.
    """

    training: TrainingImages
    validation: EvaluationImages | None
    strip: Tensor
    bad: tuple[Fault, ...]
    fingerprint: str
    reader: dict[str, Any] = field(default_factory=dict)

    def training_at(self, shapes: Sequence[Shape]) -> TrainingImages:
        """The training samples at other sizes, bucket by bucket."""
        images = self.training
        return TrainingImages(
            images.items,
            images.preparation.at(shapes[0]),
            seed=images.seed,
            crop=images.crop,
            flip=images.flip,
            cache=images.cache,
            shapes=shapes,
            buckets=images.buckets,
        )

    @property
    def held_out(self) -> int:
        """The number of images that training does not see."""
        return len(self.validation) if self.validation else 0


def open_source(data: DataTable, seed: int, phases: Sequence[Sequence[Shape]] = ()) -> Source:
    """List and look at all images of `[data]`.

    Args:
        data: the table.
        seed: of the run.
        phases: the shapes of the samples that each phase of the run trains on, bucket by bucket; an image must be large
            enough for all of its bucket. By default `data.input` alone.

    Raises:
        UsageError: there are several buckets, and what is found are no images.
        DataError: a source is missing, or none of its images can be used.
    """
    chosen = reader_of(data)
    preparation = preparation_for(data, chosen)
    shapes, largest = _by_bucket(phases or [[data.input]])
    if isinstance(preparation, FilePreparation):
        chosen = _settled(data, chosen)
        preparation = preparation_for(data, chosen)
    buckets, bad = _usable(data.source, preparation, shapes, largest, "data.source")
    training = list(buckets)
    if isinstance(data.validation, str):
        found, more = _usable(data.validation, preparation, [data.input], [data.input], "data.validation")
        held_out, bad = list(found), bad + more
    else:
        training, held_out = split(training, data.validation)
    strip, more = _strip(EvaluationImages(held_out or training, preparation))
    numbers = [buckets[item] for item in training] if len(shapes) > 1 else []
    decisive = "\n".join([*(item.name for item in training), *map(str, numbers)])
    how: dict[str, Any] = {"seed": seed, "crop": data.crop, "flip": _flips(data, chosen), "cache": data.cache}
    return Source(
        TrainingImages(training, preparation, **how, shapes=shapes, buckets=numbers),
        EvaluationImages(held_out, preparation) if held_out else None,
        strip,
        tuple(bad + more),
        sha256(decisive.encode("utf-8", "surrogateescape")).hexdigest(),
        chosen.recorded() if isinstance(preparation, FilePreparation) or preparation.span.stated else {},
    )


def reader_of(data: DataTable) -> Chosen:
    """What reads `data.source`: the reader that is named, or the first that fits and finds files.

    Raises:
        UsageError: the reader refuses its parameters.
        DataError: none finds a file.
    """
    registry = plugins.installed().registry
    if data.reader is not None:
        return made(registry, data.reader, data.model_extra or {})
    return choose(registry, data.source, data.input, "data.source")[0]


def preparation_for(data: DataTable, chosen: Chosen) -> Preparation | FilePreparation:
    """How a file becomes a sample; pictures of up to four channels are scaled and turned, nothing else is."""
    if chosen.name == IMAGES and data.input[0] <= MOST_CHANNELS:
        return Preparation.of(data, chosen.reader.span if isinstance(chosen.reader, Images) else UNSTATED)
    return FilePreparation(data.input, chosen.reader, data.max_pixels)


def _settled(data: DataTable, chosen: Chosen) -> Chosen:
    """The reader with what the training files decide, such as the rate of sounds."""
    _, _, headers = usable_files(
        found_in(chosen, data.source, "data.source"), FilePreparation(data.input, chosen.reader, data.max_pixels)
    )
    return chosen.with_values(plugins.installed().registry, chosen.reader.settled(headers))


def _flips(data: DataTable, chosen: Chosen) -> bool:
    found = plugins.installed().registry.find("reader", chosen.name)
    mirrors = isinstance(found, Registered) and isinstance(found.spec, ReaderSpec) and found.spec.mirrors
    return data.flip and len(data.input) == MOST_AXES and mirrors


def _strip(images: EvaluationImages) -> tuple[Tensor, list[Fault]]:
    """The first readable samples, and the files that were met on the way and cannot be read."""
    found: list[Tensor] = []
    bad: list[Fault] = []
    for index in range(len(images)):
        sample = images[index]
        if isinstance(sample, Sample):
            found.append(sample.x)
        else:
            bad.append(sample)
        if len(found) == STRIP:
            break
    if not found:
        raise DataError(Problem(f"none of the {len(images)} validation images can be read"), *_first(bad))
    return torch.stack(found), bad


def _by_bucket(phases: Sequence[Sequence[Shape]]) -> tuple[Sequence[Shape], list[Shape]]:
    """The shapes of the first phase, and for each the sizes that are the largest in any phase."""
    return phases[0], [tuple(map(max, zip(*shapes, strict=True))) for shapes in zip(*phases, strict=True)]


def _usable(
    source: str, preparation: Preparation | FilePreparation, shapes: Sequence[Shape], largest: list[Shape], where: str
) -> tuple[dict[Item, int], list[Fault]]:
    """The files of a source that can be used, each with its bucket, and the others."""
    if isinstance(preparation, FilePreparation):
        if len(shapes) > 1:
            raise UsageError("has no meaning for what are no images", "data.max_aspect_ratio", hint="leave it out")
        items = samples_of(preparation.reader, source, where)
        if not items:
            raise DataError(f"no files in {shown(source)} that the reader takes", where=where)
        good, unusable, _ = usable_files(items, preparation.at(largest[0]))
        return _told(source, items, dict.fromkeys(good, 0), unusable, where)
    items = list_images(source, where=where)
    return _told(source, items, *usable(items, shapes, [preparation.at(each) for each in largest]), where)


def _told(
    source: str, items: Sequence[Item], good: dict[Item, int], unusable: Sequence[BadFile], where: str
) -> tuple[dict[Item, int], list[Fault]]:
    names = {item.path: item.name for item in items}
    bad = [Fault(names[each.path], each.reason) for each in unusable]
    if not good:
        raise DataError(Problem(f"none of the {len(items)} images in {shown(source)} can be used", where), *_first(bad))
    return good, bad


def _first(bad: Sequence[Fault]) -> list[Problem]:
    return [Problem(each.reason, each.name) for each in bad[:5]] + [Problem(f"and {len(bad) - 5} more")] * (
        len(bad) > 5
    )
