"""Data sets of images: cropped at random for training, cropped in the centre for validation, whole for all else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch.utils.data import Dataset

from flexvae_cli.engine.data.cache import ImageCache
from flexvae_cli.engine.data.images import check_channels, read_image, to_tensor
from flexvae_cli.engine.data.opening import BadFile
from flexvae_cli.engine.data.sources import Item
from flexvae_cli.engine.randomness import seed_of
from flexvae_cli.errors import DataError

if TYPE_CHECKING:
    from flexvae_cli.api import Shape
    from flexvae_cli.config.settings import DataTable

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


class Numbers(Protocol):
    """(*space, c), which can be cut as an array can."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, part: Any, /) -> Any: ...


Some = TypeVar("Some", bound=Numbers)


class Preparing(Protocol):
    """How a file becomes an array, and a part of it a sample: `Preparation`, or `files.FilePreparation`."""

    @property
    def shape(self) -> Shape:
        """(c, *space) of a sample."""

    def read(self, item: Item) -> Any:
        """What can be cut, (*space, c), and has `shape` and `nbytes`; raises `BadFile`."""

    def tensor(self, array: Any) -> torch.Tensor:
        """What `read` gave, or a part of it, as a sample; raises `BadFile`."""


@dataclass(frozen=True, slots=True)
class Preparation:
    """How an image file becomes an array of the size that a model takes.

    Attributes:
        shape: (channels, height, width) of a sample.
        resize: `cover` scales an image until it just covers the shape, `none` leaves it at its own size.
        min_size: least shorter side of an image; 0 stands for the sides of `shape`.
        background: `#rrggbb` under transparent pixels where the shape has no alpha channel.
        exif: turn photographs upright.
        max_pixels: most pixels of an image.
        draft: decode large JPEGs at a fraction of their size, see `read_image`.
        cache: keeps what is decoded on disk.
    """

    shape: tuple[int, int, int]
    resize: Literal["cover", "none"] = "cover"
    min_size: int = 0
    background: str = "#ffffff"
    exif: bool = True
    max_pixels: int = 64_000_000
    draft: bool = True
    cache: ImageCache | None = None

    @classmethod
    def of(cls, data: DataTable) -> Preparation:
        """What `[data]` asks for; `flexvae_cli.plan` has refused what no image can honour."""
        channels, height, width = data.input
        return cls(
            (channels, height, width),
            data.resize,
            data.min_size,
            data.background,
            data.exif,
            data.max_pixels,
            data.draft,
            None if data.cache_dir is None else ImageCache.at(data.cache_dir),
        )

    def tensor(self, array: np.ndarray) -> torch.Tensor:
        """What `read` gave, or a part of it, as a sample."""
        return to_tensor(array)

    @property
    def least(self) -> tuple[int, int]:
        """The least (height, width) of an image that can be used, as `usable` wants it."""
        _, height, width = self.shape
        if self.min_size and self.resize == "cover":
            return self.min_size, self.min_size
        return max(height, self.min_size), max(width, self.min_size)

    def read(self, item: Item) -> np.ndarray:
        """The image as an array (h, w, c) of at least the height and width of `shape`, see `read_image`.

        Raises:
            BadFile: it cannot be read, or is smaller than `shape` and nothing enlarges it.
        """
        if self.cache is None:
            return self._decoded(item)
        cover = self.shape if self.resize == "cover" else self.shape[:1]  # what decides on the pixels, and no more
        how = repr((cover, self.background, self.exif, self.draft, self.max_pixels))
        array = self.cache.get(item.path, how, lambda: self._decoded(item))
        return self._large_enough(item, array)

    def _decoded(self, item: Item) -> np.ndarray:
        channels, height, width = self.shape
        cover = (height, width) if self.resize == "cover" else None
        array = read_image(
            item.path,
            channels=channels,
            background=self.background,
            exif=self.exif,
            max_pixels=self.max_pixels,
            cover=cover,
            draft=self.draft,
        )
        return self._large_enough(item, array)

    def _large_enough(self, item: Item, array: np.ndarray) -> np.ndarray:
        _, height, width = self.shape
        if array.shape[0] < height or array.shape[1] < width:
            raise BadFile(item.path, f"is smaller than the crop of {height}x{width}")
        return array


class TrainingImages(Dataset[Sample | DataError]):
    """Images for training: cropped and mirrored as a function of (seed, epoch, index) and nothing else.

    Args:
        items: the images.
        preparation: how a file becomes an array.
        seed: the seed of the run.
        crop: `random`, each place as likely as any other, or `center`.
        flip: mirror every second sample, on average, left to right.
        cache: bytes of decoded images that every reading process keeps.
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
    ) -> None:
        self.items = items
        self.preparation = preparation
        self.seed = seed
        self.crop = crop
        self.flip = flip
        self.cache = self.room = cache
        self.kept: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, at: tuple[int, int]) -> Sample | DataError:
        """The sample at (epoch, index), or another one, drawn from (seed, epoch, index), where its file is bad.

        Where no readable file is found the error is returned, not raised: it would lose its shape on the way out of a
        data worker. `loader.batches` raises it.
        """
        epoch, index = at
        bad: list[Fault] = []
        for attempt in range(ATTEMPTS):
            place = seed_of(self.seed, "instead", epoch, index, attempt) % len(self) if attempt else index
            try:
                x = self._augmented(self._decoded(place), epoch, index)
            except BadFile as fault:
                bad.append(Fault(self.items[place].name, fault.reason))
            else:
                return Sample(x, place, tuple(dict.fromkeys(bad)))
        last = bad[-1]
        return DataError(f"{ATTEMPTS} images in a row cannot be read; the last one, {last.name}, {last.reason}")

    def _decoded(self, place: int) -> np.ndarray:
        """The array of the image at `place`, kept for the next epoch while there is room.

        What is mapped from disk is not: it is in the system's memory already, and a process can have so many maps.
        """
        if place in self.kept:
            return self.kept[place]
        array = self.preparation.read(self.items[place])
        if array.nbytes <= self.room and not isinstance(array, np.memmap):
            self.kept[place] = array
            self.room -= array.nbytes
        return array

    def _augmented(self, array: np.ndarray, epoch: int, index: int) -> torch.Tensor:
        """Crop and mirror; one hash is the digits of all choices."""
        _, *space = self.preparation.shape
        if self.crop == "center":
            array = center_crop(array, *space)
        draw, mirrored = divmod(seed_of(self.seed, "augment", epoch, index), 2)
        window = []
        for there, wanted in zip(array.shape, space, strict=False):
            draw, start = divmod(draw, there - wanted + 1)
            window.append(slice(start, start + wanted))
        array = array[tuple(window)]
        return self.preparation.tensor(array[..., ::-1, :] if self.flip and mirrored else array)


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


class WholeImages(Dataset[tuple[Item, np.ndarray | BadFile]]):
    """Images whole, at their own size or all at one size, in the order of the items: for `infer` and `encode`.

    Args:
        items: the images.
        channels: 1 to 4, see `read_image`.
        background: `#rrggbb` under transparent pixels where there is no alpha channel.
        exif: turn photographs upright.
        max_pixels: most pixels of an image.
        size: (height, width) to scale each image to cover, and to crop its centre to; None leaves it as it is.
        draft: decode large JPEGs at a fraction of their size for that, see `read_image`.
    """

    def __init__(
        self,
        items: Sequence[Item],
        channels: int,
        *,
        background: str = "#ffffff",
        exif: bool = True,
        max_pixels: int = 64_000_000,
        size: tuple[int, int] | None = None,
        draft: bool = True,
    ) -> None:
        check_channels(channels, where="")
        self.items = items
        self.channels = channels
        self.background = background
        self.exif = exif
        self.max_pixels = max_pixels
        self.size = size
        self.draft = draft

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Item, np.ndarray | BadFile]:
        """The item and its pixels (h, w, c), see `read_image`; a bad file is returned, not raised."""
        item = self.items[index]
        try:
            array = read_image(
                item.path,
                channels=self.channels,
                background=self.background,
                exif=self.exif,
                max_pixels=self.max_pixels,
                cover=self.size,
                draft=self.draft,
            )
            return item, array if self.size is None else center_crop(array, *self.size)
        except BadFile as bad:
            return item, bad


def center_crop(array: Some, *size: int) -> Some:
    """The central part of (*space, c) that is as large as `size` along the axes of space."""
    starts = [(there - wanted) // 2 for there, wanted in zip(array.shape, size, strict=False)]
    return array[tuple(slice(start, start + wanted) for start, wanted in zip(starts, size, strict=True))]


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
