"""What a static rule says of a layer: shape, parameters, multiply-adds, and which inputs an output looks at."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

Shape = tuple[int, ...]


class ShapeError(ValueError):
    """The input does not fit the layer. `expected`: the channels that it takes, where their number is what is wrong."""

    def __init__(self, message: str, expected: int | None = None) -> None:
        super().__init__(message)
        self.expected = expected


@dataclass(frozen=True, slots=True)
class Reach:
    """Which inputs an output at position `o` looks at, per axis: those from `stride*o + low` to `stride*o + high`.

    Attributes:
        stride: input positions from one output position to the next; a fraction where a layer upsamples.
        low, high: the interval's ends, exact where they are whole numbers, else an interval that is sure to hold them.
        statistics: the output depends on means and variances over the whole space as well (group and instance norm).
        everywhere: the output depends on every position (attention, adaptive pooling); the intervals then mean nothing.
    """

    stride: tuple[Fraction, ...]
    low: tuple[Fraction, ...]
    high: tuple[Fraction, ...]
    statistics: bool = False
    everywhere: bool = False

    def then(self, after: Reach) -> Reach:
        """The reach of this layer followed by `after`, seen from this layer's input."""
        return Reach(
            tuple(a * b for a, b in zip(self.stride, after.stride, strict=True)),
            tuple(a * b + lo for a, b, lo in zip(self.stride, after.low, self.low, strict=True)),
            tuple(a * b + hi for a, b, hi in zip(self.stride, after.high, self.high, strict=True)),
            self.statistics or after.statistics,
            self.everywhere or after.everywhere,
        )

    def union(self, other: Reach) -> Reach:
        """The reach of two paths that are added."""
        return Reach(
            self.stride,
            tuple(map(min, self.low, other.low)),
            tuple(map(max, self.high, other.high)),
            self.statistics or other.statistics,
            self.everywhere or other.everywhere,
        )

    @property
    def field(self) -> tuple[int, ...]:
        """The receptive field: the largest number of input positions that one output sees, per axis."""
        return tuple(math.floor(hi - lo) + 1 for lo, hi in zip(self.low, self.high, strict=True))


def local(axes: int) -> Reach:
    """The reach of a layer that works position by position."""
    return Reach((Fraction(1),) * axes, (Fraction(0),) * axes, (Fraction(0),) * axes)


@dataclass(frozen=True, slots=True)
class Step:
    """What a rule says of a layer at one input shape.

    Attributes:
        shape: the output, (channels, *space).
        parameters: trainable numbers.
        macs: multiply-adds of convolutions and matrix products for one sample.
        reach: which inputs an output sees.
        notes: what a good engineer would point out.
    """

    shape: Shape
    parameters: int
    macs: int
    reach: Reach
    notes: tuple[str, ...] = ()


Rule = Callable[[Shape], Step]


def per_axis(value: int | Shape, axes: int) -> Shape:
    """One number for each of `axes` axes.

    Raises:
        ValueError: `value` has another number of axes.
    """
    if isinstance(value, int):
        return (value,) * axes
    if len(value) != axes:
        raise ValueError(f"the size {text(value)} has {len(value)} axes, the data has {axes}")
    return value


def text(shape: Shape) -> str:
    """`(3, 256, 256)` -> `3x256x256`."""
    return "x".join(str(n) for n in shape)


def everywhere(axes: int) -> Reach:
    """The reach of a layer whose outputs depend on every position."""
    reach = local(axes)
    return Reach(reach.stride, reach.low, reach.high, everywhere=True)


def takes(shape: Shape, channels: int) -> None:
    """Refuse an input of another number of channels."""
    if shape[0] != channels:
        raise ShapeError(f"takes {channels} channels, but {shape[0]} come in", expected=channels)


def divides(name: str, number: int, **channels: int) -> None:
    """Refuse a number that does not divide the channels, which are given by their parameter's name."""
    for what, count in channels.items():
        if count % number:
            raise ValueError(f"{name} {number} does not divide {what.replace('_', '-')} {count}")
