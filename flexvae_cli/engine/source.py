"""A config's images, listed, looked at, and split into those to train on and those held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256

import torch
from torch import Tensor

from flexvae_cli.config.settings import DataTable
from flexvae_cli.engine.data.dataset import EvaluationImages, Fault, Preparation, Sample, TrainingImages
from flexvae_cli.engine.data.sources import Item, list_images, split, usable
from flexvae_cli.errors import DataError, Problem
from flexvae_cli.paths import shown

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
    """

    training: TrainingImages
    validation: EvaluationImages | None
    strip: Tensor
    bad: tuple[Fault, ...]
    fingerprint: str

    def training_at(self, shape: Sequence[int]) -> TrainingImages:
        """The training samples at another height and width."""
        channels, height, width = shape
        images = self.training
        preparation = replace(images.preparation, shape=(channels, height, width))
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
    preparation = Preparation.of(data)
    largest = tuple(max(sizes) for sizes in zip(preparation.shape, *shapes, strict=True))
    training, bad = _usable(data.source, replace(preparation, shape=largest), "data.source")
    if isinstance(data.validation, str):
        held_out, more = _usable(data.validation, preparation, "data.validation")
        bad += more
    else:
        training, held_out = split(training, data.validation)
    strip, more = _strip(EvaluationImages(held_out or training, preparation))
    names = "\n".join(item.name for item in training)
    return Source(
        TrainingImages(training, preparation, seed=seed, crop=data.crop, flip=data.flip, cache=data.cache),
        EvaluationImages(held_out, preparation) if held_out else None,
        strip,
        tuple(bad + more),
        sha256(names.encode("utf-8", "surrogateescape")).hexdigest(),
    )


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


def _usable(source: str, preparation: Preparation, where: str) -> tuple[list[Item], list[Fault]]:
    height, width = preparation.least
    items = list_images(source, where=where)
    good, unusable = usable(
        items, min_height=height, min_width=width, max_pixels=preparation.max_pixels, exif=preparation.exif
    )
    names = {item.path: item.name for item in items}
    bad = [Fault(names[each.path], each.reason) for each in unusable]
    if not good:
        raise DataError(Problem(f"none of the {len(items)} images in {shown(source)} can be used", where), *_first(bad))
    return good, bad


def _first(bad: Sequence[Fault]) -> list[Problem]:
    return [Problem(each.reason, each.name) for each in bad[:5]] + [Problem(f"and {len(bad) - 5} more")] * (
        len(bad) > 5
    )
