"""Files whole, in the order of the items: what `infer` and `encode` read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.utils.data import Dataset

from flexvae_cli.api.readers import About, BadFile, Reader
from flexvae_cli.api.trace import Shape
from flexvae_cli.engine.data.files import read_numbers
from flexvae_cli.engine.data.images import check_channels, read_picture
from flexvae_cli.engine.data.preparation import center_crop
from flexvae_cli.engine.data.readers.span import UNSTATED, Span
from flexvae_cli.engine.data.sources import Item


class WholeImages(Dataset[tuple[tuple[Item, About], Any]]):
    """Images whole, at their own size or all at one size, in the order of the items.

    Args:
        items: the images.
        channels: 1 to 4, see `read_picture`.
        background: `#rrggbb` under transparent pixels where there is no alpha channel.
        exif: turn photographs upright.
        max_pixels: most pixels of an image.
        size: (height, width) to scale each image to cover, and to crop its centre to; None leaves it as it is.
        draft: decode large JPEGs at a fraction of their size for that, see `read_picture`.
        span: the range of numbers that state none themselves.
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
        span: Span = UNSTATED,
    ) -> None:
        check_channels(channels, where="")
        self.items = items
        self.channels = channels
        self.background = background
        self.exif = exif
        self.max_pixels = max_pixels
        self.size = size
        self.draft = draft
        self.span = span

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[tuple[Item, About], Any]:
        """The item and what its file says of itself, and its pixels (h, w, c); a bad file is returned, not raised."""
        item = self.items[index]
        try:
            picture = read_picture(
                item.path,
                channels=self.channels,
                background=self.background,
                exif=self.exif,
                max_pixels=self.max_pixels,
                cover=self.size,
                draft=self.draft,
                span=self.span,
            )
        except BadFile as bad:
            return (item, {}), bad
        pixels = picture.pixels
        return (item, picture.about), pixels if self.size is None else center_crop(pixels, *self.size)


class WholeFiles(Dataset[tuple[tuple[Item, About], Any]]):
    """Files whole, in the order of the items.

    Args:
        items: the files.
        reader: what reads them.
        like: (c, *space) of a training sample.
        most: the most positions of a file.
    """

    def __init__(self, items: Sequence[Item], reader: Reader, like: Shape, most: int) -> None:
        self.items = items
        self.reader = reader
        self.like = like
        self.most = most

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[tuple[Item, About], Any]:
        """The item and what its file says of itself, and its sample (c, *space); a bad file is returned, not raised."""
        item = self.items[index]
        try:
            numbers = read_numbers(self.reader, item.path, self.like, self.most)
            return (item, dict(numbers.about)), numbers.sample().numpy()
        except BadFile as bad:
            return (item, {}), bad
