"""Data sets: cropped at random for training, in the centre for validation; their samples, and batches of these."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from flexvae_cli.api.trace import Shape
from flexvae_cli.engine.data.opening import BadFile
from flexvae_cli.engine.data.preparation import Preparing, center_crop
from flexvae_cli.engine.data.sources import Item
from flexvae_cli.engine.randomness import seed_of
from flexvae_cli.errors import DataError

ATTEMPTS = 100  # at finding a readable image in place of a bad one, before giving up on the source


class Fault(NamedTuple):
    """A bad file that was met on the way, for the report."""

    name: str
    reason: str


class Sample(NamedTuple):
    """One sample.

    Attributes:
        x: float32 (c, *space) in [-1, 1].
        place: where it stands in the list of items.
        bad: the bad files in whose place it stands.
    """

    x: torch.Tensor
    place: int
    bad: tuple[Fault, ...] = ()


class MicroBatch(NamedTuple):
    """Samples together.

    Attributes:
        x: float32 (b, c, *space) in [-1, 1].
        places: int64 (b,), where the samples stand in the list of items.
        bad: the bad files met on the way; the same file turns up again whenever its turn comes.
    """

    x: torch.Tensor
    places: torch.Tensor
    bad: tuple[Fault, ...]


class TrainingImages(Dataset[Sample | DataError]):
    """Images for training: cropped and mirrored as a function of (seed, epoch, index) and nothing else.

    Args:
        items: the images.
        preparation: how a file becomes an array.
        seed: the seed of the run.
        crop: `random`, each place as likely as any other, or `center`.
        flip: mirror every second sample, on average, left to right.
        cache: bytes of decoded images that every reading process keeps.
        shapes: (c, *space) of the samples, bucket by bucket; by default one, that of `preparation`.
        buckets: the bucket of each image; by default the first.
    """

    def __init__(
        self,
        items: Sequence[Item],
        preparation: Preparing,
        *,
        seed: int,
        crop: Literal["random", "center"] = "random",
        flip: bool = True,
        cache: int = 0,
        shapes: Sequence[Shape] = (),
        buckets: Sequence[int] = (),
    ) -> None:
        self.items = items
        self.preparation = preparation
        self.seed = seed
        self.crop = crop
        self.flip = flip
        self.cache = self.room = cache
        self.kept: dict[tuple[int, int], np.ndarray] = {}
        self.buckets = buckets
        self.preparations = [preparation.at(shape) for shape in shapes] or [preparation]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, at: tuple[int, int]) -> Sample | DataError:
        """The sample at (epoch, index), or another one, drawn from (seed, epoch, index), where its file is bad.

        That one is scaled to the shape of the one that it stands for, whatever its own bucket.

        Where no readable file is found the error is returned, not raised: it would lose its shape on the way out of a
        data worker. `loader.batches` raises it.
        """
        epoch, index = at
        bucket, bad = self.buckets[index] if self.buckets else 0, list[Fault]()
        for attempt in range(ATTEMPTS):
            place = seed_of(self.seed, "instead", epoch, index, attempt) % len(self) if attempt else index
            try:
                x = self._augmented(self._decoded(place, bucket), bucket, epoch, index)
            except BadFile as fault:
                bad.append(Fault(self.items[place].name, fault.reason))
            else:
                return Sample(x, place, tuple(dict.fromkeys(bad)))
        last = bad[-1]
        return DataError(f"{ATTEMPTS} images in a row cannot be read; the last one, {last.name}, {last.reason}")

    def _decoded(self, place: int, bucket: int = 0) -> np.ndarray:
        """The array of the image at `place` for the shape of a bucket, kept for the next epoch while there is room.

        What is mapped from disk is not: it is in the system's memory already, and a process can have so many maps.
        """
        if (place, bucket) in self.kept:
            return self.kept[place, bucket]
        array = self.preparations[bucket].read(self.items[place])
        if array.nbytes <= self.room and not isinstance(array, np.memmap):
            self.kept[place, bucket] = array
            self.room -= array.nbytes
        return array

    def _augmented(self, array: np.ndarray, bucket: int, epoch: int, index: int) -> torch.Tensor:
        """Crop and mirror; one hash is the digits of all choices."""
        _, *space = self.preparations[bucket].shape
        if self.crop == "center":
            array = center_crop(array, *space)
        draw, mirrored = divmod(seed_of(self.seed, "augment", epoch, index), 2)
        window = []
        for there, wanted in zip(array.shape, space, strict=False):
            draw, start = divmod(draw, there - wanted + 1)
            window.append(slice(start, start + wanted))
        array = array[tuple(window)]
        noise = seed_of(self.seed, "noise", epoch, index)
        return self.preparations[bucket].tensor(array[..., ::-1, :] if self.flip and mirrored else array, noise)


class EvaluationImages(Dataset[Sample | Fault]):
    """Images for validation: the centre of each, always the same.

    Args:
        items: the images.
        preparation: how a file becomes an array.
    """

    def __init__(self, items: Sequence[Item], preparation: Preparing) -> None:
        self.items = items
        self.preparation = preparation

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Sample | Fault:
        """The sample at `index`, or what is wrong with its file; `collate` leaves those out of the batch."""
        try:
            array = self.preparation.read(self.items[index])
            x = self.preparation.tensor(center_crop(array, *self.preparation.shape[1:]))
        except BadFile as bad:
            return Fault(self.items[index].name, bad.reason)
        return Sample(x, index)


def collate(samples: Sequence[Sample | Fault | DataError]) -> MicroBatch | DataError:
    """Samples -> one batch, or the first error among them."""
    readable: list[Sample | Fault] = []
    for sample in samples:
        if isinstance(sample, DataError):
            return sample
        readable.append(sample)
    return micro_batch(readable)


def micro_batch(samples: Sequence[Sample | Fault]) -> MicroBatch:
    """Samples -> one batch; bad files go to its report. Where every file is bad `x` has no samples."""
    good = [s for s in samples if isinstance(s, Sample)]
    bad = [f for s in samples for f in (s.bad if isinstance(s, Sample) else (s,))]
    x = torch.stack([s.x for s in good]) if good else torch.empty(0)
    return MicroBatch(x, torch.tensor([s.place for s in good], dtype=torch.int64), tuple(dict.fromkeys(bad)))
