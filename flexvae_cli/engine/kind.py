"""Of which kind the samples of a trained model are: which files it takes, and what comes out of it as a file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from flexvae_cli import plugins
from flexvae_cli.api.trace import Shape, text
from flexvae_cli.engine.data.choosing import IMAGES, Chosen, candidates, choose, found_in, made, wants
from flexvae_cli.engine.data.files import MOST, checked_header
from flexvae_cli.engine.data.opening import image_size
from flexvae_cli.engine.data.shards import Headers
from flexvae_cli.engine.data.sources import Item, list_images
from flexvae_cli.engine.naming import OutputFolder, output_names
from flexvae_cli.errors import DataError, FlexVAEError, ModelError, UsageError
from flexvae_cli.paths import shown
from flexvae_cli.samples import MOST_AXES, MOST_CHANNELS

if TYPE_CHECKING:
    from flexvae_cli.api.readers import About

Description = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Kind:
    """How samples are found, read and written.

    Attributes:
        shape: (c, *space) of a training sample.
        chosen: the reader; that of images stands for pictures of up to four channels, which have a way of their own.
        how: what the model says of its preprocessing.
    """

    shape: Shape
    chosen: Chosen
    how: Mapping[str, Any]

    @property
    def pictures(self) -> bool:
        """Whether the samples are pictures of up to four channels."""
        return self.chosen.name == IMAGES and len(self.shape) == MOST_AXES and self.shape[0] <= MOST_CHANNELS

    @property
    def most(self) -> int:
        """The most positions of a file."""
        return int(self.how.get("max_pixels", MOST))

    def names(self, names: Sequence[str], reserved: Iterable[str] = ()) -> dict[str, str]:
        """An output name for every input name, see `output_names`; a file stays of its kind."""
        return output_names(names, self.chosen.reader.suffix, reserved)

    def write(self, folder: OutputFolder, output: str, x: Tensor, about: About) -> None:
        """Put a sample (c, *space) in [-1, 1] in place, as a file of its kind.

        Args:
            folder: where to.
            output: its name, one of `names`.
            x: the sample.
            about: what the file that it comes from says of itself.

        Raises:
            ModelError: no file can be made of that.
        """
        reader, numbers = self.chosen.reader, np.ascontiguousarray(x.detach().float().cpu().numpy())
        with _makes(output):
            data = reader.write(numbers, about, reader.suffix(output))
        folder.write(output, data)

    def check(self, output: str, about: About, size: Shape) -> None:
        """Refuse what `write` can do nothing with, before anything is written.

        Args:
            output, about: see `write`.
            size: of the sample.

        Raises:
            ModelError: what is wrong.
        """
        with _makes(output):
            self.chosen.reader.check(about, (self.shape[0], *size), self.chosen.reader.suffix(output))

    def size_of(self, item: Item) -> Shape:
        """The size of a sample, from the header of its file.

        Raises:
            BadFile: it cannot be read.
        """
        if self.pictures:
            return image_size(item.path, exif=self.how.get("exif", True), max_pixels=self.most)
        return checked_header(self.chosen.reader, item.path, self.shape, self.most).shape[1:]


@contextmanager
def _makes(output: str) -> Iterator[None]:
    """Whatever a reader raises inside is the fault of what it was told of the file."""
    try:
        yield
    except FlexVAEError:
        raise
    except Exception as error:
        what = " ".join(str(error).split())[:200] or type(error).__name__
        raise ModelError(f"no such file can be made of what is recorded of it ({what})", where=output) from error


def kind_of(description: Description) -> Kind:
    """The kind of the samples that a model was trained on.

    Raises:
        UsageError: they were read by a reader that is not installed.
    """
    shape, how = tuple(description["input"]), description.get("preprocessing", {})
    registry = plugins.installed().registry
    name = how.get("reader") or candidates(registry, shape)[0]
    if shape[0] > MOST_CHANNELS and name == IMAGES and "reader" not in how:
        name = "arrays"
    return Kind(shape, made(registry, name, how.get("parameters", {}), where="model.json"), how)


def samples_in(description: Description, source: str, where: str, *, named: bool = False) -> tuple[Kind, list[Item]]:
    """The samples of a source, for a model: by the reader of its training, or by another where that finds nothing.

    Args:
        description: the model's.
        source: a folder, a file or a built-in set.
        where: what to call the source in an error.
        named: whether a person named the reader, see `engine.rereading`: no other is then tried.

    Raises:
        UsageError: there is no such built-in set.
        DataError: there is nothing to read in it.
    """
    kind = kind_of(description)
    if named:
        items = found_in(kind.chosen, source, where)
        if not items:
            raise DataError(f"nothing in {shown(source)} for the reader {kind.chosen.name}", where=where)
        return kind, items
    if source.startswith("builtin:") and kind.pictures:
        return kind, list_images(source, where=where)
    path = Path(source)
    if path.is_file() and not wants(kind.chosen.reader, path):
        for name in candidates(plugins.installed().registry, kind.shape):
            other = made(plugins.installed().registry, name, {})
            if name != kind.chosen.name and wants(other.reader, path):
                return Kind(kind.shape, other, kind.how), [Item(path.name, path)]
    headers = Headers()
    items = found_in(kind.chosen, source, where, headers)
    if items:
        return kind, items
    try:
        chosen, items = choose(plugins.installed().registry, source, kind.shape, where, headers)
    except DataError:
        if kind.pictures:
            return kind, list_images(source, where=where)  # tells what is read
        raise
    return Kind(kind.shape, chosen, kind.how), items


def kind_for(kind: Kind, name: str) -> Kind:
    """The kind of which a file of that name is; `kind` itself where it may be."""
    if kind.chosen.reader.finds(name, b""):
        return kind
    registry = plugins.installed().registry
    for other in candidates(registry, kind.shape):
        chosen = made(registry, other, {})
        if chosen.reader.finds(name, b""):
            return Kind(kind.shape, chosen, kind.how)
    return kind


def require_axes(kind: Kind, size: Shape, where: str) -> None:
    """Refuse a size with another number of axes than the samples have.

    Raises:
        UsageError: says how many.
    """
    axes = len(kind.shape) - 1
    if len(size) != axes:
        raise UsageError(
            f"{where} wants {axes} ax{'is' if axes == 1 else 'es'}, as in {text(kind.shape[1:])}, not {text(size)}"
        )


def require_pictures(kind: Kind, options: Mapping[str, object]) -> None:
    """Refuse options that have no meaning for what is no picture.

    Args:
        kind: what the samples are.
        options: name -> value; those that are set are refused.

    Raises:
        UsageError: names them.
    """
    given = [name for name, value in options.items() if value]
    if given and not kind.pictures:
        raise UsageError(*(f"{name} has no meaning for {text(kind.shape)} from {kind.chosen.name}" for name in given))
