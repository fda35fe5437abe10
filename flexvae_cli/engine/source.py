"""A config's images, listed, looked at, and split into those to train on and those held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

from flexvae_cli.config.settings import DataTable
from flexvae_cli.engine.data.dataset import EvaluationImages, Preparation, TrainingImages
from flexvae_cli.engine.data.opening import BadFile
from flexvae_cli.engine.data.sources import Item, list_images, split, usable
from flexvae_cli.errors import DataError, Problem

MOST_STAND_INS = 8  # training images that latent statistics are measured on where nothing is held out


@dataclass(frozen=True)
class Source:
    """What there is to train on.

    Attributes:
        training: the training samples.
        validation: the validation samples; training images, cropped in the centre, where nothing is held out.
        held_out: the number of images that training does not see.
        bad: the files that cannot be used.
        fingerprint: hash of the names of the training images; the sample order follows from them.
    """

    training: TrainingImages
    validation: EvaluationImages
    held_out: int
    bad: tuple[BadFile, ...]
    fingerprint: str


def open_source(data: DataTable, seed: int) -> Source:
    """List and look at all images of `[data]`.

    Raises:
        DataError: a source is missing, or none of its images can be used.
    """
    preparation = Preparation.of(data)
    if isinstance(data.validation, str):
        training, bad = _usable(data.source, preparation, "data.source")
        held_out, more = _usable(data.validation, preparation, "data.validation")
        bad += more
    else:
        found, bad = _usable(data.source, preparation, "data.source")
        training, held_out = split(found, data.validation)
    names = "\n".join(item.name for item in training)
    return Source(
        TrainingImages(training, preparation, seed=seed, crop=data.crop, flip=data.flip, cache=data.cache),
        EvaluationImages(held_out or training[:MOST_STAND_INS], preparation),
        len(held_out),
        tuple(bad),
        sha256(names.encode("utf-8", "surrogateescape")).hexdigest(),
    )


def _usable(source: str, preparation: Preparation, where: str) -> tuple[list[Item], list[BadFile]]:
    height, width = preparation.least
    items = list_images(source, where=where)
    good, bad = usable(
        items, min_height=height, min_width=width, max_pixels=preparation.max_pixels, exif=preparation.exif
    )
    if not good:
        raise DataError(Problem(f"none of the {len(items)} images in {source} can be used", where), *_shown(bad))
    return good, bad


def _shown(bad: Sequence[BadFile]) -> list[Problem]:
    shown = [Problem(each.reason, str(each.path)) for each in bad[:5]]
    return shown + [Problem(f"and {len(bad) - 5} more")] * (len(bad) > 5)
