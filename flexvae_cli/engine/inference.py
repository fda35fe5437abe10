"""Whole images through a trained model: read, padded, run in batches, cropped back."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from flexvae_cli.engine.data.dataset import Fault
from flexvae_cli.engine.data.files import read_numbers
from flexvae_cli.engine.data.images import read_picture, to_tensor
from flexvae_cli.engine.data.loader import whole_images
from flexvae_cli.engine.data.opening import BadFile
from flexvae_cli.engine.data.preparation import center_crop
from flexvae_cli.engine.data.readers.images import Images
from flexvae_cli.engine.data.whole import WholeFiles, WholeImages
from flexvae_cli.engine.kind import kind_of
from flexvae_cli.engine.metrics import Scores, scores
from flexvae_cli.engine.precision import Precision
from flexvae_cli.engine.randomness import generator
from flexvae_cli.errors import DataError, ModelError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from flexvae_cli.api import Encoded, Shape
    from flexvae_cli.api.readers import About
    from flexvae_cli.engine.data.sources import Item
    from flexvae_cli.engine.kind import Kind
    from flexvae_cli.engine.model import Model

BATCH_SIZE = 8
BATCH_PIXELS = 1 << 22  # most pixels of a batch of several images
Some = TypeVar("Some")


@dataclass(frozen=True, slots=True)
class Sample:
    """A sample: its name, its numbers (c, *space) in [-1, 1], and what its file says of itself."""

    name: str
    x: Tensor
    about: About = field(default_factory=dict)

    @property
    def size(self) -> Shape:
        """The sizes of its axes: height and width of an image."""
        return tuple(self.x.shape[1:])


@dataclass(frozen=True, slots=True)
class Reconstruction:
    """A sample, what the model makes of it, (c, *space) in [-1, 1], and how near the two are."""

    sample: Sample
    x: Tensor
    scores: Scores


def read_samples(
    model: Model,
    items: Sequence[Item],
    *,
    workers: int,
    report: Callable[[Fault], None],
    size: tuple[int, int] | None = None,
    kind: Kind | None = None,
) -> Iterator[Sample]:
    """The samples in order, prepared as the training samples were.

    Args:
        model: for which they are prepared.
        items: the images.
        workers: most processes that read, one for every four images at most, since they take a while to start; 0 reads
            in this one.
        size: (height, width) to scale and crop each image to; None leaves it at its own size.
        report: is told of every file that cannot be read, once.
        kind: what they are, as `samples_in` found it; by default images.

    Raises:
        UsageError: the model does not take images.
        DataError: none of the files can be read, or a worker died.
    """
    if kind is not None and not kind.pictures:
        yield from _read_files(kind, items, min(workers, len(items) // 4), report)
        return
    dataset = WholeImages(items, image_channels(model), size=size, **preparation_of(model))
    readable = False
    for (item, about), array in whole_images(dataset, workers=min(workers, len(items) // 4)):
        if isinstance(array, BadFile):
            report(Fault(item.name, array.reason))
        else:
            readable = True
            yield Sample(item.name, to_tensor(array), about)
    if not readable:
        raise DataError(f"none of the {len(items)} images can be read, the first is {items[0].path}")


def _read_files(kind: Kind, items: Sequence[Item], workers: int, report: Callable[[Fault], None]) -> Iterator[Sample]:
    """`read_samples` for what is no picture."""
    readable = False
    for (item, about), x in whole_images(WholeFiles(items, kind.chosen.reader, kind.shape, kind.most), workers=workers):
        if isinstance(x, BadFile):
            report(Fault(item.name, x.reason))
        else:
            readable = True
            yield Sample(item.name, torch.from_numpy(x), about)
    if not readable:
        raise DataError(f"none of the {len(items)} files can be read, the first is {items[0].path}")


def read_pair(model: Model, first: Path, second: Path, kind: Kind | None = None) -> tuple[Sample, Sample]:
    """Two samples, the centre of each at the largest size that both have.

    Raises:
        UsageError: the model does not take images.
        DataError: a file cannot be read.
    """
    if kind is not None and not kind.pictures:
        return _pair_of_files(kind, first, second)
    channels = image_channels(model)
    try:
        pictures = [read_picture(path, channels=channels, **preparation_of(model)) for path in (first, second)]
    except BadFile as bad:
        raise DataError(bad.reason, where=str(bad.path)) from bad
    height, width = (min(picture.pixels.shape[axis] for picture in pictures) for axis in (0, 1))
    a, b = (to_tensor(center_crop(picture.pixels, height, width)) for picture in pictures)
    return Sample(first.name, a, pictures[0].about), Sample(second.name, b, pictures[1].about)


def _pair_of_files(kind: Kind, first: Path, second: Path) -> tuple[Sample, Sample]:
    try:
        a, b = (read_numbers(kind.chosen.reader, path, kind.shape, kind.most) for path in (first, second))
        size = [min(sizes) for sizes in zip(a.shape[:-1], b.shape[:-1], strict=True)]
        x, y = (center_crop(numbers, *size).sample() for numbers in (a, b))
    except BadFile as bad:
        raise DataError(bad.reason, where=str(bad.path)) from bad
    return Sample(first.name, x, a.about), Sample(second.name, y, b.about)


def image_channels(model: Model) -> int:
    """The channels of the images that a model takes.

    Raises:
        UsageError: it takes something else.
    """
    shape = model.net.shape
    if len(shape) != 3 or shape[0] > 4:
        takes = " x ".join(str(n) for n in shape)
        raise UsageError(f"takes samples of {takes}, which are not images", where=str(model.path))
    return shape[0]


def preparation_of(model: Model) -> dict[str, Any]:
    """How images are read for a model, as options of `read_picture`."""
    how, reader = model.description.get("preprocessing", {}), kind_of(model.description).chosen.reader
    span = {"span": reader.span} if isinstance(reader, Images) else {}
    return {key: how[key] for key in ("background", "exif", "max_pixels", "draft") if key in how} | span


# ---------------------------------------------------------------------------------------------------------- batches


def runs(things: Iterable[Some], space_of: Callable[[Some], Shape], batch_size: int) -> Iterator[list[Some]]:
    """Neighbours of the same padded size together, in order.

    What is batched with what depends on the order and the sizes alone, so that encoding and decoding apart give the
    same bits as both in one go.

    Args:
        things: images or latents.
        space_of: the padded (height, width) of one.
        batch_size: most of them in a batch; less where they are large.
    """
    run: list[Some] = []
    space: Shape = ()
    for thing in things:
        here = space_of(thing)
        if run and (here != space or len(run) >= batch_size or (len(run) + 1) * math.prod(space) > BATCH_PIXELS):
            yield run
            run = []
        space = here
        run.append(thing)
    if run:
        yield run


@torch.inference_mode()
def encoded_batch(model: Model, samples: Sequence[Tensor]) -> Encoded:
    """Samples (c, h, w) of the same padded size -> all that the bottleneck gives, on the model's device."""
    padded = torch.cat([model.padded(x[None]) for x in samples])  # (b, c, h, w)
    return model.encoded(padded.to(model.device))


def encode_batch(model: Model, samples: Sequence[Tensor]) -> Tensor:
    """Samples (c, h, w) of the same padded size -> latents (b, c', h', w') on the model's device."""
    return encoded_batch(model, samples).z


def require_finite(model: Model, samples: Sequence[Sample], each: Iterable[Tensor], what: str) -> None:
    """Refuse what a broken model makes of samples.

    Raises:
        ModelError: names the first sample whose tensor is not finite.
    """
    for sample, tensor in zip(samples, each, strict=True):
        if not bool(tensor.isfinite().all()):
            raise ModelError(f"gives {what} of {sample.name} that are not finite", where=str(model.path))


@torch.inference_mode()
def decode_batch(model: Model, latents: Tensor, sizes: Sequence[Shape]) -> list[Tensor]:
    """Latents (b, c', *space') -> samples (c, *space) on the host, each cropped to its size."""
    x = model.decode(latents.to(model.device)).to("cpu", torch.float32)  # (b, c, *space)
    return [one[(slice(None), *(slice(n) for n in size))] for one, size in zip(x, sizes, strict=True)]


def reconstruct(
    model: Model, samples: Iterable[Sample], batch_size: int = BATCH_SIZE, precision: Precision | None = None
) -> Iterator[Reconstruction]:
    """Encode and decode every image; latents are posterior means, where there is a posterior.

    Args:
        model: what does it.
        samples: the images.
        batch_size: most of them in a batch.
        precision: how the nets compute, by default in fp32; scores are computed in fp32 always.
    """
    for run in runs(samples, lambda sample: model.net.fitting(sample.size), batch_size):
        with precision.autocast() if precision else nullcontext():
            latents = encode_batch(model, [sample.x for sample in run])
            images = decode_batch(model, latents, [sample.size for sample in run])
        for sample, x in zip(run, images, strict=True):
            yield Reconstruction(sample, x, scores(sample.x, x))


# ------------------------------------------------------------------------------------------------------ latent space


def prior_samples(model: Model, count: int, size: Shape, *, seed: int, fitted: bool) -> Iterator[Tensor]:
    """Decoded draws (c, h, w) from the prior; draw k is a function of seed and k, whatever the count.

    Args:
        model: what decodes them.
        count: how many.
        size: of the samples.
        seed: all randomness follows from it.
        fitted: draw from the latents' statistics in training; see `Model.prior`.

    Raises:
        UsageError: the model has no prior, no statistics, or takes no images.
    """
    for index in range(count):
        latent = model.prior(1, size, generator=generator(seed, "sample", index), fitted=fitted)
        yield decode_batch(model, latent, [size])[0]


def interpolation(model: Model, a: Sample, b: Sample, *, steps: int, spherical: bool) -> Iterator[Tensor]:
    """Decoded points (c, h, w) on the way from one latent to the other, both ends included.

    Args:
        model: what encodes and decodes.
        a, b: images of the same size.
        steps: how many points, 2 at least.
        spherical: go along a great circle rather than straight; see `slerp`.
    """
    start, end = encode_batch(model, [a.x]), encode_batch(model, [b.x])
    for index in range(steps):
        t = index / (steps - 1)
        latent = slerp(start, end, t) if spherical else torch.lerp(start, end, t)
        yield decode_batch(model, latent, [a.size])[0]


def slerp(a: Tensor, b: Tensor, t: float) -> Tensor:
    """The point at `t` in [0, 1] from `a` to `b`, turning at a constant rate (Shoemake, 1985).

    The tensors count as one vector each. Where their directions are the same or opposite the way is straight.
    """
    cosine = torch.nn.functional.cosine_similarity(a.cpu().double().flatten(), b.cpu().double().flatten(), dim=0)
    angle = math.acos(max(-1.0, min(1.0, cosine.item())))
    if math.sin(angle) < 1e-6:
        return torch.lerp(a, b, t)
    return (math.sin((1 - t) * angle) * a + math.sin(t * angle) * b) / math.sin(angle)
