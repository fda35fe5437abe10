"""What a run of layers does along the first axis of its input, read off their static rules, and where it may be cut."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

from flexvae_cli.api import LayerSpec, Reach, Shape
from flexvae_cli.api.trace import local
from flexvae_cli.codes import Bound
from flexvae_cli.rules import traced
from flexvae_cli.structure import Item, Leaf, Sum

SIZES = range(1, 129)  # asked of a rule, to learn which it takes


class Piece(NamedTuple):
    """Rows `begin` to `end` of an input; the first `skip` rows of what a layer makes of them are of no use."""

    begin: int
    end: int
    skip: int


@dataclass(frozen=True, slots=True)
class Way:
    """From the input of a run of layers to its output.

    Attributes:
        shape: what comes out, (channels, *space).
        reach: which inputs an output sees.
        period: the layers treat positions of the first axis alike that so many rows lie between.
    """

    shape: Shape
    reach: Reach
    period: int

    def then(self, after: Way) -> Way:
        """This run followed by another."""
        period = math.lcm(self.period, (self.reach.stride[0] * after.period).numerator)
        return Way(after.shape, self.reach.then(after.reach), period)

    def beside(self, other: Way) -> Way:
        """Two paths that are added."""
        return Way(self.shape, self.reach.union(other.reach), math.lcm(self.period, other.period))

    @property
    def local(self) -> bool:
        """An output depends on nothing beyond its interval."""
        return not (self.reach.statistics or self.reach.everywhere)

    @property
    def grows(self) -> bool:
        """It upsamples, so that its output is better never stored."""
        return self.local and self.reach.stride[0] < 1

    @property
    def still(self) -> bool:
        """Rows stay where they are, each by itself but for statistics."""
        reach = self.reach
        return not reach.everywhere and reach.stride[0] == 1 and reach.low[0] == reach.high[0] == 0

    @property
    def margin(self) -> int:
        """How many rows an output looks to either side, at most."""
        return max(0, math.ceil(-self.reach.low[0]), math.ceil(self.reach.high[0]))

    def piece(self, first: int, end: int, rows: int, *, inside: bool = False) -> Piece:
        """What to read for the outputs `first` to `end`.

        As much is read before as behind, for a border that mirrors looks the other way.

        Args:
            first, end: rows of the output.
            rows: of the whole input.
            inside: `first` and `end` are rows of the input instead, of something on the way that has as many.
        """
        stride = Fraction(1) if inside else self.reach.stride[0]
        beyond = 0 if inside else math.floor((self.shape[1] - 1) * stride) - (rows - 1)  # outputs behind the last input
        spread = max(self.margin, 2 * beyond)
        begin = math.floor((first * stride - spread) / self.period) * self.period
        last = math.ceil((math.floor((end - 1) * stride) + spread + 1) / Fraction(self.period)) * self.period
        begin = max(0, begin)
        return Piece(begin, min(rows, last), first - int(begin / stride))


def identity(shape: Shape) -> Way:
    """Nothing at all."""
    return Way(shape, local(len(shape) - 1), 1)


def way_of(items: Sequence[Item], shape: Shape) -> Way | None:
    """What items do to an input (channels, *space); None where one of them has no static rule."""
    way = identity(shape)
    for item in items:
        after = _layer(item, way.shape) if isinstance(item, Leaf) else _sum(item, way.shape)
        if after is None:
            return None
        way = way.then(after)
    return way


def _sum(item: Sum, shape: Shape) -> Way | None:
    body, shortcut = way_of(item.body, shape), way_of(item.shortcut, shape)
    return None if body is None or shortcut is None else body.beside(shortcut)


def _layer(leaf: Leaf, shape: Shape) -> Way | None:
    spec = leaf.bound.spec
    if not isinstance(spec, LayerSpec) or spec.trace is None:
        return None
    step = traced(leaf.bound, shape)
    assert step is not None
    return Way(step.shape, step.reach, math.lcm(step.reach.stride[0].numerator, _grain(leaf.bound, shape)))


def _taken(bound: Bound, shape: Shape) -> bool:
    try:
        return traced(bound, shape) is not None
    except ValueError:
        return False


def _grain(bound: Bound, shape: Shape) -> int:
    """The number that divides all sizes which a layer takes: it cuts its input up into so many rows by itself."""
    if _taken(bound, (shape[0], shape[1] + 1, *shape[2:])):
        return 1
    return math.gcd(*(n for n in SIZES if _taken(bound, (shape[0], n, *shape[2:])))) or shape[1]
