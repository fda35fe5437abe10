"""How a file becomes an array, and a part of that array a sample."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

import numpy as np
import torch

from flexvae_cli.engine.data.cache import ImageCache
from flexvae_cli.engine.data.images import read_image, to_tensor
from flexvae_cli.engine.data.opening import BadFile
from flexvae_cli.engine.data.readers.span import UNSTATED, Span
from flexvae_cli.engine.data.sources import Item

if TYPE_CHECKING:
    from flexvae_cli.api import Shape
    from flexvae_cli.config.settings import DataTable


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

    def at(self, shape: Shape, /) -> Preparing:
        """The same for samples of another size."""

    def read(self, item: Item) -> Any:
        """What can be cut, (*space, c), and has `shape` and `nbytes`; raises `BadFile`."""

    def tensor(self, array: Any, noise: int | None = None) -> torch.Tensor:
        """What `read` gave, or a part of it, as a sample, drawn by a seed where it is of a distribution; `BadFile`."""


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
        span: the range of numbers that state none themselves.
    """

    shape: tuple[int, int, int]
    resize: Literal["cover", "none"] = "cover"
    min_size: int = 0
    background: str = "#ffffff"
    exif: bool = True
    max_pixels: int = 64_000_000
    draft: bool = True
    cache: ImageCache | None = None
    span: Span = UNSTATED

    @classmethod
    def of(cls, data: DataTable, span: Span = UNSTATED) -> Preparation:
        """What `[data]` and its reader ask for; `flexvae_cli.plan` has refused what no image can honour."""
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
            span,
        )

    def at(self, shape: Shape) -> Preparation:
        """The same for samples of another size."""
        channels, height, width = shape
        return replace(self, shape=(channels, height, width))

    def tensor(self, array: np.ndarray, noise: int | None = None) -> torch.Tensor:  # noqa: ARG002 - no distribution
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
            span=self.span,
        )
        return self._large_enough(item, array)

    def _large_enough(self, item: Item, array: np.ndarray) -> np.ndarray:
        _, height, width = self.shape
        if array.shape[0] < height or array.shape[1] < width:
            raise BadFile(item.path, f"is smaller than the crop of {height}x{width}")
        return array


def center_crop(array: Some, *size: int) -> Some:
    """The central part of (*space, c) that is as large as `size` along the axes of space."""
    starts = [(there - wanted) // 2 for there, wanted in zip(array.shape, size, strict=False)]
    return array[tuple(slice(start, start + wanted) for start, wanted in zip(starts, size, strict=True))]
