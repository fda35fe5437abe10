"""A config's images, listed, looked at, and split into those to train on and those held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor

from flexvae_cli import plugins
from flexvae_cli.config.settings import DataTable
from flexvae_cli.engine.data.dataset import EvaluationImages, Fault, Preparation, Preparing, Sample, TrainingImages
from flexvae_cli.engine.data.files import IMAGES, Chosen, FilePreparation, choose, finder, found_in, made, usable_files
from flexvae_cli.engine.data.opening import BadFile
from flexvae_cli.engine.data.sources import Item, list_files, list_images, split, usable
from flexvae_cli.errors import DataError, Problem
from flexvae_cli.paths import shown
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
        fingerprint: hash of the names of the training images; the sample order follows from them.
        reader: what a model records of how samples are read: empty for images.
    """

    training: TrainingImages
    validation: EvaluationImages | None
    strip: Tensor
    bad: tuple[Fault, ...]
    fingerprint: str
    reader: dict[str, Any] = field(default_factory=dict)

    def training_at(self, shape: Sequence[int]) -> TrainingImages:
        """The training samples at another size."""
        images = self.training
        preparation = with_shape(images.preparation, shape)
        return TrainingImages(
            images.items, preparation, seed=images.seed, crop=images.crop, flip=images.flip, cache=images.cache
        )

    @property
    def held_out(self) -> int:
        """The number of images that training does not see."""
        return len(self.validation) if self.validation else 0


def open_source(data: DataTable, seed: int, shapes: Sequence[Sequence[int]] = ()) -> Source:
    """List and look at all images of `[data]`.

    Args:
        data: the table.
        seed: of the run.
        shapes: of the samples that phases of the run train on; an image must be large enough for each of them.

    Raises:
        DataError: a source is missing, or none of its images can be used.
    """
    chosen = reader_of(data)
    preparation = preparation_for(data, chosen)
    largest = tuple(max(sizes) for sizes in zip(preparation.shape, *shapes, strict=True))
    if isinstance(preparation, FilePreparation):
        chosen = _settled(data, chosen)
        preparation = preparation_for(data, chosen)
    training, bad = _usable(data.source, with_shape(preparation, largest), "data.source")
    if isinstance(data.validation, str):
        held_out, more = _usable(data.validation, preparation, "data.validation")
        bad += more
    else:
        training, held_out = split(training, data.validation)
    strip, more = _strip(EvaluationImages(held_out or training, preparation))
    names = "\n".join(item.name for item in training)
    return Source(
        TrainingImages(training, preparation, seed=seed, crop=data.crop, flip=_flips(data), cache=data.cache),
        EvaluationImages(held_out, preparation) if held_out else None,
        strip,
        tuple(bad + more),
        sha256(names.encode("utf-8", "surrogateescape")).hexdigest(),
        chosen.recorded() if isinstance(preparation, FilePreparation) else {},
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
        return Preparation.of(data)
    return FilePreparation(data.input, chosen.reader, data.max_pixels)


def with_shape(preparation: Preparing, shape: Sequence[int]) -> Preparation | FilePreparation:
    """The same for samples of another size."""
    if isinstance(preparation, FilePreparation):
        return replace(preparation, shape=tuple(shape))
    assert isinstance(preparation, Preparation)
    channels, height, width = shape
    return replace(preparation, shape=(channels, height, width))


def _settled(data: DataTable, chosen: Chosen) -> Chosen:
    """The reader with what the training files decide, such as the rate of sounds."""
    _, _, headers = usable_files(
        found_in(chosen, data.source, "data.source"), FilePreparation(data.input, chosen.reader, data.max_pixels)
    )
    return chosen.with_values(plugins.installed().registry, chosen.reader.settled(headers))


def _flips(data: DataTable) -> bool:
    return data.flip and len(data.input) == MOST_AXES


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


def _usable(source: str, preparation: Preparation | FilePreparation, where: str) -> tuple[list[Item], list[Fault]]:
    if isinstance(preparation, FilePreparation):
        items = list_files(source, finder(preparation.reader), where=where)
        if not items:
            raise DataError(f"no files in {shown(source)} that the reader takes", where=where)
        good, unusable, _ = usable_files(items, preparation)
        return _told(source, items, good, unusable, where)
    height, width = preparation.least
    items = list_images(source, where=where)
    good, unusable = usable(
        items, min_height=height, min_width=width, max_pixels=preparation.max_pixels, exif=preparation.exif
    )
    return _told(source, items, good, unusable, where)


def _told(
    source: str, items: Sequence[Item], good: list[Item], unusable: Sequence[BadFile], where: str
) -> tuple[list[Item], list[Fault]]:
    names = {item.path: item.name for item in items}
    bad = [Fault(names[each.path], each.reason) for each in unusable]
    if not good:
        raise DataError(Problem(f"none of the {len(items)} images in {shown(source)} can be used", where), *_first(bad))
    return good, bad


def _first(bad: Sequence[Fault]) -> list[Problem]:
    return [Problem(each.reason, each.name) for each in bad[:5]] + [Problem(f"and {len(bad) - 5} more")] * (
        len(bad) > 5
    )
