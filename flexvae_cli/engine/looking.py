"""How the files of a data set are looked at: by which reader, and as samples of which channels and axes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flexvae_cli import plugins
from flexvae_cli.api.readers import BadFile, ReaderSpec
from flexvae_cli.api.trace import Shape
from flexvae_cli.engine.data.choosing import IMAGES, Chosen, candidates, choose, found_in, made
from flexvae_cli.engine.data.files import MOST, FilePreparation, Numbers, read_numbers, usable_files
from flexvae_cli.engine.data.images import read_picture, require_channels
from flexvae_cli.engine.data.preparation import Preparation
from flexvae_cli.engine.data.readers.images import Images
from flexvae_cli.engine.data.sources import Item, list_images, split
from flexvae_cli.engine.source import preparation_for, reader_of
from flexvae_cli.errors import DataError, ModelError
from flexvae_cli.paths import shown
from flexvae_cli.registry import Registered

if TYPE_CHECKING:
    from flexvae_cli.config.settings import DataTable

MOST_TRIED = 64  # channels that a file is asked for, where nobody says how many it has
OF_IMAGES = 3  # channels, where nobody says how many


@dataclass(frozen=True, slots=True)
class Way:
    """How each file is read.

    Attributes:
        chosen: the reader.
        axes: the numbers of axes that a sample may have, tried in this order.
        channels: of a sample; None stands for as many as a file has.
        least: the least size along each axis; one for all where there is one.
        most: the most positions of a file.
        how: what else `read_picture` is told of images.
    """

    chosen: Chosen
    axes: tuple[int, ...]
    channels: int | None = None
    least: Shape = (1,)
    most: int = MOST
    how: Mapping[str, Any] = field(default_factory=dict)

    def read(self, path: Path) -> Numbers:
        """The numbers of a file, whole.

        Raises:
            BadFile: it cannot be read, or has not the channels or axes that a sample has.
        """
        if self.chosen.name == IMAGES and self.channels is not None:
            require_channels(path, self.channels)
            picture = read_picture(path, channels=self.channels, max_pixels=self.most, **self.how)
            white = 1.0 if picture.pixels.dtype.kind == "f" else float(np.iinfo(picture.pixels.dtype).max)
            return Numbers(picture.pixels, 0.0, white, path, picture.about)
        return read_numbers(self.chosen.reader, path, self._like(path), self.most)

    def _like(self, path: Path) -> Shape:
        """The first shape, but for its sizes, that a file can be read as; the first of all where there is none."""
        shapes = list(self._shapes())
        return shapes[0] if len(shapes) == 1 else next(filter(lambda each: self._fits(path, each), shapes), shapes[0])

    def _shapes(self) -> Iterator[Shape]:
        for axes in self.axes:
            for channels in range(1, MOST_TRIED + 1) if self.channels is None else (self.channels,):
                yield (channels, *(1 for _ in range(axes)))

    def _fits(self, path: Path, like: Shape) -> bool:
        try:
            self.chosen.reader.header(path, like)
        except BadFile:
            return False
        return True


def way_of(
    source: str,
    where: str,
    *,
    reader: str | None,
    values: Mapping[str, Any],
    channels: int | None,
    least: int,
    most: int,
) -> tuple[Way, list[Item]]:
    """How the files of a source are looked at that no config tells of, and these files.

    Args:
        source: a folder, a tar, any other file, or a built-in set.
        where: what to call the source in an error.
        reader: its name; None takes the first that finds files.
        values: parameters of the reader.
        channels, least, most: see `Way`.

    Raises:
        UsageError: there is no such reader, or it has no such parameters.
        DataError: there is nothing to read.
    """
    registry, name, items = plugins.installed().registry, reader, list[Item]()
    if name is None:
        found_by, items = choose(registry, source, None, where)
        name = found_by.name
    chosen = made(registry, name, values, where="--range, --low, --high")
    found = registry.find("reader", name)
    axes = found.spec.axes if isinstance(found, Registered) and isinstance(found.spec, ReaderSpec) else ()
    if name == IMAGES:
        channels = channels or OF_IMAGES
    how = {"span": chosen.reader.span} if isinstance(chosen.reader, Images) else {}
    way = Way(chosen, tuple(sorted(axes, reverse=True)), channels, (least,), most, how)
    return way, items or listed(way, source, where)


def way_of_config(data: DataTable) -> tuple[Way, list[Item]]:
    """How training with a `[data]` would read the files of its source, and these files.

    Raises:
        UsageError: the reader refuses its parameters.
        DataError: there is nothing to read.
    """
    chosen, items = reader_of(data)
    preparation = preparation_for(data, chosen)
    axes, channels = (len(data.input) - 1,), data.input[0]
    if isinstance(preparation, Preparation):
        how = {"background": data.background, "exif": data.exif, "span": preparation.span}
        return Way(chosen, axes, channels, preparation.least, data.max_pixels, how), items
    _, _, headers = usable_files(items, FilePreparation(data.input, chosen.reader, data.max_pixels))
    settled = chosen.with_values(plugins.installed().registry, chosen.reader.settled(headers))
    return Way(settled, axes, channels, data.input[1:], data.max_pixels), items


def held_out(way: Way, items: Sequence[Item], data: DataTable) -> tuple[list[Item], list[Item]]:
    """What a `[data]` trains on and what it validates on, the latter empty where it does not."""
    if isinstance(data.validation, str):
        return list(items), listed(way, data.validation, "data.validation")
    return split(items, data.validation)


def listed(way: Way, source: str, where: str) -> list[Item]:
    """The samples of a source that the reader finds.

    Raises:
        DataError: there are none.
    """
    items = found_in(way.chosen, source, where)
    if not items and way.chosen.name == IMAGES:
        return list_images(source, where=where)  # tells what is read
    if not items:
        hint = "--reader names another one" if where != "data.validation" else ""
        raise DataError(f"nothing in {shown(source)} for the reader {way.chosen.name}", where=where, hint=hint)
    return items


def passed_over(way: Way, items: Sequence[Item], source: str) -> dict[str, int]:
    """How many more files of a source other readers would find: name -> number, none of them counted twice."""
    registry, seen, more = plugins.installed().registry, {item.name for item in items}, dict[str, int]()
    for name in candidates(registry, None):
        if name == way.chosen.name or not Path(source).is_dir():
            continue
        try:
            names = {item.name for item in found_in(made(registry, name, {}), source, "PATH")} - seen
        except (DataError, ModelError):  # nobody asked that reader
            continue
        seen |= names
        more |= {name: len(names)} if names else {}
    return more
