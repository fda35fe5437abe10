"""Latents that an earlier encode has left: found by the name of their image, and used where its file is the same."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from flexvae_cli.engine.data.sources import THREADS
from flexvae_cli.engine.files import make_directory, writing
from flexvae_cli.engine.latents.containers import Layout
from flexvae_cli.engine.latents.journal import STOCK, Record
from flexvae_cli.engine.latents.plan import Planned
from flexvae_cli.engine.latents.sources import still_is
from flexvae_cli.engine.latents.values import Row
from flexvae_cli.engine.manifest import ImageSource, LatentFile, LatentImage

OPEN_FILES = 64  # mapped into memory at a time


@dataclass(frozen=True, slots=True)
class Place:
    """Where the latent of an image lies, and what its file holds now."""

    file: LatentFile
    image: LatentImage
    source: ImageSource


class Stock:
    """What can be used again of an earlier encode.

    Args:
        output: the folder, resolved.
        records: those that their files bear out.
        images: what is to be encoded; a latent counts where its image has the same content and the same size.
        layout: of the files.
        keys: the names of the tensors in them.
    """

    def __init__(
        self, output: Path, records: Iterable[Record], images: Sequence[Planned], layout: Layout, keys: Sequence[str]
    ) -> None:
        self.output = output
        self.layout = layout
        self.keys = keys
        self.files = {file.path: file for record in records for file in record.files}
        self._moved: dict[str, str] = {}
        known = {image.name: image for record in records for image in record.images if image.file in self.files}
        written = {file: (output / file).stat().st_mtime_ns for file in self.files}

        def look(planned: Planned) -> Place | None:
            there = known.get(planned.item.name)
            if there is None or there.source is None or tuple(there.size) != tuple(planned.size):
                return None
            now = still_is(planned.item.path, there.source, written[there.file])
            return None if now is None else Place(self.files[there.file], there, now)

        with ThreadPoolExecutor(THREADS) as pool:
            found = list(zip(images, pool.map(look, images), strict=True))
        self.places = {planned.item.name: place for planned, place in found if place is not None}
        self._opened = lru_cache(maxsize=OPEN_FILES)(self._open)

    def row(self, name: str) -> Row:
        """The tensors of the latent of an image, as they were written."""
        place = self.places[name]
        row = self._opened(place.file.path)
        return {key: row[key][place.image.index] for key in self.keys}

    def moved(self, file: LatentFile) -> LatentFile:
        """A file as it will be once `move` has put it aside."""
        aside = f"{STOCK}/{file.sha256}{self.layout.suffix}"
        self._moved[file.path] = aside
        return file.model_copy(update={"path": aside})

    def move(self) -> None:
        """Put the files aside that `moved` was asked for, so that new ones can take their places."""
        for old, new in self._moved.items():
            if new != old:
                with writing(self.output / new):
                    make_directory((self.output / new).parent)
                    (self.output / old).replace(self.output / new)

    def _open(self, path: str) -> Row:
        return self.layout.unpack(self.output / self._moved.get(path, path), self.keys)
