"""A config's images, listed, looked at, and split into those to train on and those held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor

from flexvae_cli import plugins
from flexvae_cli.api.readers import ReaderSpec
from flexvae_cli.api.trace import Shape
from flexvae_cli.config.settings import DataTable
from flexvae_cli.engine.data.buckets import usable
from flexvae_cli.engine.data.choosing import IMAGES, Chosen, choose, found_in, made
from flexvae_cli.engine.data.dataset import EvaluationImages, Fault, Sample, TrainingImages
from flexvae_cli.engine.data.files import FilePreparation, usable_files
from flexvae_cli.engine.data.opening import BadFile
from flexvae_cli.engine.data.preparation import Preparation
from flexvae_cli.engine.data.readers.images import Images
from flexvae_cli.engine.data.readers.span import UNSTATED
from flexvae_cli.engine.data.sources import Item, links_out, list_images, split
from flexvae_cli.errors import DataError, Problem, UsageError
from flexvae_cli.paths import shown
from flexvae_cli.registry import Registered
from flexvae_cli.samples import MOST_AXES, MOST_CHANNELS

Found = tuple[dict[Item, int], list[BadFile]]
"""The files that can be used, each with the number of its bucket, and what is wrong with the others."""

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

    @cached_property
    def files(self) -> int:
        """The number of all that was found, usable or not: what is damaged behind its header is still in use."""
        in_use = [*self.training.items, *(self.validation.items if self.validation else ())]
        return len(in_use) + len({fault.name for fault in self.bad} - {item.name for item in in_use})


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
    chosen, items = reader_of(data)
    preparation = preparation_for(data, chosen)
    shapes, largest = _by_bucket(phases or [[data.input]])
    if isinstance(preparation, FilePreparation):
        if len(shapes) > 1:
            what, where = "has no meaning for what are no images", "data.max_aspect_ratio"
            raise UsageError(what, where=where, hint="leave it out")
        chosen, found = _settled(data, chosen, items, largest[0])
        preparation = preparation_for(data, chosen)
    else:
        found = usable(items, shapes, [preparation.at(each) for each in largest])
    buckets, bad = _told(data.source, items, *found, "data.source")
    training, held_out, more = _split(data, chosen, preparation, list(buckets), bucketed=len(shapes) > 1)
    bad += more
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


def reader_of(data: DataTable) -> tuple[Chosen, list[Item]]:
    """What reads `data.source`, the reader that is named, or the first that fits and finds files; and what it finds.

    Raises:
        UsageError: the reader refuses its parameters.
        DataError: none finds a file.
    """
    registry = plugins.installed().registry
    if data.reader is None:
        return choose(registry, data.source, data.input, "data.source")
    chosen = made(registry, data.reader, data.model_extra or {})
    return chosen, _listed(chosen, data.source, "data.source")


def preparation_for(data: DataTable, chosen: Chosen) -> Preparation | FilePreparation:
    """How a file becomes a sample; pictures of up to four channels are scaled and turned, nothing else is."""
    if chosen.name == IMAGES and data.input[0] <= MOST_CHANNELS:
        return Preparation.of(data, chosen.reader.span if isinstance(chosen.reader, Images) else UNSTATED)
    return FilePreparation(data.input, chosen.reader, data.max_pixels)


def _listed(chosen: Chosen, source: str, where: str) -> list[Item]:
    items = found_in(chosen, source, where)
    if not items and isinstance(chosen.reader, Images):
        return list_images(source, where=where)  # tells what is read
    if not items:
        raise DataError(f"no files in {shown(source)} that the reader takes{links_out(str(source))}", where=where)
    return items


def _settled(data: DataTable, chosen: Chosen, items: Sequence[Item], largest: Shape) -> tuple[Chosen, Found]:
    """The reader with what the training files decide, such as the rate of sounds; and which of these it can use."""
    good, bad, headers = usable_files(items, FilePreparation(data.input, chosen.reader, data.max_pixels))
    settled = chosen.with_values(plugins.installed().registry, chosen.reader.settled(headers))
    if settled is not chosen or largest != data.input:
        good, bad, _ = usable_files(items, FilePreparation(largest, settled.reader, data.max_pixels))
    return settled, (dict.fromkeys(good, 0), bad)


def _split(
    data: DataTable, chosen: Chosen, preparation: Preparation | FilePreparation, items: list[Item], *, bucketed: bool
) -> tuple[list[Item], list[Item], list[Fault]]:
    """What is trained on, what is held out, and what cannot be, since validation takes the centre at `data.input`."""
    training, held_out, source = items, list[Item](), data.source
    if isinstance(data.validation, str):
        source = data.validation
        held_out = _listed(chosen, source, "data.validation")
    else:
        training, held_out = split(items, data.validation)
        if not held_out or not bucketed:  # all that can be trained on is as large as `data.input`
            return training, held_out, []
    good, bad = _told(source, held_out, *_usable(held_out, preparation), "data.validation")
    return training, list(good), bad


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


def _usable(items: Sequence[Item], preparation: Preparation | FilePreparation) -> Found:
    """The files that can be used at the shape of a preparation, and the others."""
    if isinstance(preparation, FilePreparation):
        good, bad, _ = usable_files(items, preparation)
        return dict.fromkeys(good, 0), bad
    return usable(items, [preparation.shape], [preparation])


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
