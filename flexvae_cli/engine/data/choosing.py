"""Which reader reads a source, and the samples that it finds there."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from flexvae_cli.api.readers import Reader, ReaderSpec
from flexvae_cli.api.trace import Shape, text
from flexvae_cli.engine.data.members import fault_of
from flexvae_cli.engine.data.readers.images import Images
from flexvae_cli.engine.data.shards import Headers
from flexvae_cli.engine.data.sources import Item, finds_image, head_of, list_files
from flexvae_cli.errors import DataError, ModelError, Problem, UsageError, listed
from flexvae_cli.parameters import bind_values
from flexvae_cli.paths import shown
from flexvae_cli.registry import Registered, Registry

IMAGES = "images"
MOST_TOLD = 5  # of what is wrong


@dataclass(frozen=True, slots=True)
class Chosen:
    """A reader, and what it takes to have the same one again.

    Attributes:
        name: `images`, or what a plugin calls it.
        values: its parameters.
        reader: made of them.
    """

    name: str
    values: Mapping[str, Any]
    reader: Reader

    def recorded(self) -> dict[str, Any]:
        """What a model, or a folder of latents, says of it under `preprocessing`."""
        return {"reader": self.name, "parameters": dict(self.values)}

    def with_values(self, registry: Registry, values: Mapping[str, Any]) -> Chosen:
        """The same reader with other values of some parameters."""
        return made(registry, self.name, {**self.values, **values}) if values else self


def made(registry: Registry, name: str, values: Mapping[str, Any], where: str = "data") -> Chosen:
    """The reader of that name.

    Raises:
        UsageError: there is none, or the values are not its.
    """
    found = registry.find("reader", name)
    if not isinstance(found, Registered):
        raise UsageError(found)
    problems: list[Any] = []
    given = {key: value for key, value in values.items() if value is not None}
    bound = bind_values(found.spec, given, where, problems)
    if bound is None:
        raise UsageError(*problems)
    try:
        return Chosen(name, dict(bound.values), found.spec(**bound.values))
    except ValueError as error:
        raise UsageError(f"{name}: {error}", where=where) from error


def found_in(chosen: Chosen, source: str, where: str, headers: Headers | None = None) -> list[Item]:
    """The samples of a source that a reader reads, sorted by name; see `list_files`."""
    return samples_of(chosen.reader, source, where, headers)


def samples_of(reader: Reader, source: str, where: str, headers: Headers | None = None) -> list[Item]:
    """The samples of a source: those that the reader lists itself, or every file that it wants; sorted by name.

    Raises:
        UsageError: there is no such built-in set.
        DataError: see `list_files`; or two samples of the reader's own are called alike, or as no file can be.
        ModelError: latents are not what their manifest says.
    """
    if isinstance(reader, Images):
        # opens those files alone whose names do not tell
        return list_files(source, finds_image, where=where, headers=headers)
    own = None if source.startswith("builtin:") else reader.listed(Path(source))
    if own is None:
        return list_files(source, lambda name, head: reader.finds(name, head()), where=where, headers=headers)
    try:  # names become those of files, and what is held out goes by them
        found = [Item(name, path) for name, path in sorted(own, key=lambda each: os.fsencode(each[0]))]
    except UnicodeEncodeError as error:
        what = f"the reader calls a sample {error.object!a}, as no file can be called"
        raise DataError(what, where=where) from error
    alike = dict.fromkeys(one.name for one, other in pairwise(found) if one.name == other.name)
    if alike:
        raise DataError(*(Problem(f"the reader calls two samples {n!r}", where) for n in list(alike)[:MOST_TOLD]))
    return found


def wants(reader: Reader, path: Path) -> bool:
    """Whether a reader wants a file."""
    return reader.finds(path.name, head_of(path))


def candidates(registry: Registry, shape: Shape | None) -> list[str]:
    """The names of the readers whose samples can have as many axes, those of this package first; None takes all."""
    specs = [each.spec for each in registry.all("reader") if isinstance(each.spec, ReaderSpec)]
    fitting = [spec.name for spec in specs if shape is None or len(shape) - 1 in spec.axes]
    order = {name: index for index, name in enumerate((IMAGES, "audio", "volumes", "arrays"))}
    return sorted(fitting, key=lambda name: (order.get(name, len(order)), name))


def choose(
    registry: Registry, source: str, shape: Shape | None, where: str, headers: Headers | None = None
) -> tuple[Chosen, list[Item]]:
    """The first reader that finds files in a source, with its defaults, and these files.

    Args:
        registry: the readers.
        source: a folder, a tar, any other file, or a built-in set.
        shape: (c, *space) of a sample; None where it may have any.
        where: what to call the source in an error.
        headers: of its tars, where another reader was tried before.

    Raises:
        DataError: none does.
    """
    if source.startswith("builtin:"):
        chosen = made(registry, IMAGES, {})
        return chosen, found_in(chosen, source, where)
    names, bad, headers = candidates(registry, shape), list[Problem](), headers or Headers()
    for name in names:
        chosen = made(registry, name, {})
        try:
            items = found_in(chosen, source, where, headers)
        except ModelError as error:  # a manifest of something else, say: the reader was not asked for
            bad = bad or list(error.problems)
            continue
        if any(not fault_of(item.path) for item in items) and (
            len(items) > 1 or items[0].path != Path(source) or wants(chosen.reader, items[0].path)
        ):
            return chosen, items
        bad = bad or [Problem(fault, item.name) for item in items if (fault := fault_of(item.path))]
    what, hint = f"nothing to read in {shown(Path(source))}", f"readers: {listed(names, last='and')}; see docs/data.md"
    if shape is not None:
        axes = len(shape) - 1
        what += f": samples of {text(shape)} have {'1 axis' if axes == 1 else f'{axes} axes'}"
        hint = hint.replace("readers:", "readers for that:")
    raise DataError(Problem(what, where, hint=hint), *bad[:MOST_TOLD])
