"""Whole images through a trained model: read, padded, run in batches, cropped back."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from flexvae_cli.engine.data.dataset import Fault, WholeImages, center_crop
from flexvae_cli.engine.data.images import read_image, to_tensor
from flexvae_cli.engine.data.loader import whole_images
from flexvae_cli.engine.data.opening import BadFile
from flexvae_cli.engine.metrics import Scores, scores
from flexvae_cli.engine.randomness import generator
from flexvae_cli.errors import DataError, ModelError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from flexvae_cli.api import Encoded, Shape
    from flexvae_cli.engine.data.sources import Item
    from flexvae_cli.engine.model import Model

BATCH_SIZE = 8
BATCH_PIXELS = 1 << 22  # most pixels of a batch of several images
Some = TypeVar("Some")


@dataclass(frozen=True, slots=True)
class Sample:
    """An image: its name, and its pixels (c, h, w) in [-1, 1]."""

    name: str
    x: Tensor

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.x.shape[1], self.x.shape[2]


@dataclass(frozen=True, slots=True)
class Reconstruction:
    """An image, what the model makes of it, (c, h, w) in [-1, 1], and how near the two are."""

    sample: Sample
    x: Tensor
    scores: Scores


def read_samples(
    model: Model, items: Sequence[Item], *, workers: int, report: Callable[[Fault], None]
) -> Iterator[Sample]:
    """The images in order, at their own size, prepared as the training images were.

    Args:
        model: for which they are prepared.
        items: the images.
        workers: most processes that read, one for every four images at most, since they take a while to start; 0 reads
            in this one.
        report: is told of every file that cannot be read, once.

    Raises:
        UsageError: the model does not take images.
        DataError: none of the files can be read, or a worker died.
    """
    dataset = WholeImages(items, image_channels(model), **_preprocessing(model))
    readable = False
    for item, array in whole_images(dataset, workers=min(workers, len(items) // 4)):
        if isinstance(array, BadFile):
            report(Fault(item.name, array.reason))
        else:
            readable = True
            yield Sample(item.name, to_tensor(array))
    if not readable:
        raise DataError(f"none of the {len(items)} images can be read, the first is {items[0].path}")


def read_pair(model: Model, first: Path, second: Path) -> tuple[Sample, Sample]:
    """Two images, the centre of each at the largest size that both have.

    Raises:
        UsageError: the model does not take images.
        DataError: a file cannot be read.
    """
    channels = image_channels(model)
    try:
        arrays = [read_image(path, channels=channels, **_preprocessing(model)) for path in (first, second)]
    except BadFile as bad:
        raise DataError(bad.reason, where=str(bad.path)) from bad
    height, width = (min(array.shape[axis] for array in arrays) for axis in (0, 1))
    a, b = (to_tensor(center_crop(array, height, width)) for array in arrays)
    return Sample(first.name, a), Sample(second.name, b)


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


def _preprocessing(model: Model) -> dict[str, Any]:
    how = model.description.get("preprocessing", {})
    return {key: how[key] for key in ("background", "exif", "max_pixels") if key in how}


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
def decode_batch(model: Model, latents: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Latents (b, c', h', w') -> samples (c, h, w) on the host, each cropped to its size."""
    x = model.decode(latents.to(model.device)).to("cpu", torch.float32)  # (b, c, h, w)
    return [image[:, :height, :width] for image, (height, width) in zip(x, sizes, strict=True)]


def reconstruct(model: Model, samples: Iterable[Sample], batch_size: int = BATCH_SIZE) -> Iterator[Reconstruction]:
    """Encode and decode every image; latents are posterior means, where there is a posterior."""
    for run in runs(samples, lambda sample: model.net.fitting(sample.size), batch_size):
        latents = encode_batch(model, [sample.x for sample in run])
        for sample, x in zip(run, decode_batch(model, latents, [s.size for s in run]), strict=True):
            yield Reconstruction(sample, x, scores(sample.x, x))


# ------------------------------------------------------------------------------------------------------ latent space


def prior_samples(model: Model, count: int, size: Shape, *, seed: int, fitted: bool) -> Iterator[Tensor]:
    """Decoded draws (c, h, w) from the prior; draw k is a function of seed and k, whatever the count.

    Args:
        model: what decodes them.
        count: how many.
        size: height and width.
        seed: all randomness follows from it.
        fitted: draw from the latents' statistics in training; see `Model.prior`.

    Raises:
        UsageError: the model has no prior, no statistics, or takes no images.
    """
    image_channels(model)
    height, width = size
    for index in range(count):
        latent = model.prior(1, size, generator=generator(seed, "sample", index), fitted=fitted)
        yield decode_batch(model, latent, [(height, width)])[0]


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
