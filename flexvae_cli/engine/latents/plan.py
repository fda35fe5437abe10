"""Which latent will lie where: decided from the sizes in the headers before anything is encoded.

A unit is what is encoded together and written at one stroke. What is in it depends on the images alone, not on how many
processes share the work, on where an earlier encode was killed, or on images that turn out to be damaged; so whatever
is repeated gives the same bytes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flexvae_cli.api.trace import text
from flexvae_cli.engine.data.dataset import Fault
from flexvae_cli.engine.data.members import fault_of
from flexvae_cli.engine.data.opening import BadFile
from flexvae_cli.engine.data.sources import THREADS, Item

if TYPE_CHECKING:
    from flexvae_cli.api import Shape

NUMBER = re.compile(r"0|[1-9][0-9]{0,5}")  # of a class, as tars name it
MOST_PER_LABEL, SPARE_LABELS = 10, 1000  # classes that numbers may count, for those that there are
ROOM = 1 << 28  # most bytes of latents that a unit holds in memory


@dataclass(frozen=True, slots=True)
class Planned:
    """An image that is to be encoded.

    Attributes:
        item: where it is.
        size: (height, width) of what the net is given.
        label: the number of its top-level folder.
    """

    item: Item
    size: Shape
    label: int


@dataclass(frozen=True, slots=True)
class Unit:
    """Images whose latents have one shape and are written together.

    Attributes:
        latent: the shape.
        number: of the unit among those of this shape.
        images: in the order in which they are encoded.
    """

    latent: Shape
    number: int
    images: tuple[Planned, ...]

    @property
    def key(self) -> str:
        """What tells it from the others."""
        return f"{text(self.latent)}/{self.number}"


def labels_of(items: Iterable[Item]) -> list[str]:
    """The classes of a source: sorted bytewise; where all are numbers that tars name, those from 0 to the highest.

    A highest one that leaves nearly all below it without an image is a name like any other.

    `""` stands for images that are in no class.
    """
    items = [item for item in items if not fault_of(item.path)]
    labels = {label_of(item) for item in items}
    if labels and all(item.label is not None for item in items) and all(map(NUMBER.fullmatch, labels)):
        count = max(map(int, labels)) + 1
        if count <= MOST_PER_LABEL * len(labels) + SPARE_LABELS:
            return [str(number) for number in range(count)]
    return sorted(labels, key=lambda name: name.encode("utf-8", "surrogateescape"))


def label_of(item: Item) -> str:
    """The class of an image: what its tar says, or its top-level folder; `""` where it has none."""
    if item.label is not None:
        return item.label
    return item.name.partition("/")[0] if "/" in item.name else ""


def measured(items: Sequence[Item], size_of: Callable[[Item], Shape]) -> tuple[list[Planned], list[Fault]]:
    """Look at the header of every image.

    Args:
        items: the images of a source.
        size_of: the size of what the net will be given of one; raises `BadFile`.

    Returns:
        The images that can be encoded as far as can be told, and what is wrong with the others.
    """

    def look(item: Item) -> Shape | Fault:
        try:
            return size_of(item)
        except BadFile as bad:
            return Fault(item.name, bad.reason)

    number = {label: index for index, label in enumerate(labels_of(items))}
    with ThreadPoolExecutor(THREADS) as pool:
        found = list(zip(items, pool.map(look, items), strict=True))
    faults = [seen for _, seen in found if isinstance(seen, Fault)]
    return [Planned(item, seen, number[label_of(item)]) for item, seen in found if not isinstance(seen, Fault)], faults


def units_of(images: Iterable[Planned], latent_of: Callable[[Shape], Shape], *, most: int, row: int) -> list[Unit]:
    """The units of an encode, shape after shape in the order in which the shapes turn up.

    Args:
        images: in the order of the source.
        latent_of: the shape of the latent of an image of some size.
        most: images per unit.
        row: bytes that are held for each number of a latent's shape.
    """
    series: dict[Shape, list[Planned]] = {}
    for image in images:
        series.setdefault(latent_of(image.size), []).append(image)
    units = []
    for latent, members in series.items():
        count = max(1, min(most, ROOM // (math.prod(latent) * row)))
        units += [
            Unit(latent, start // count, tuple(members[start : start + count]))
            for start in range(0, len(members), count)
        ]
    return units
