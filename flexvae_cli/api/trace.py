"""Static rules: what a layer does to shapes, parameters, multiply-adds and reach, in plain arithmetic, without torch.

A rule maps an input shape `(channels, *space)` to a `Step`. The functions below make rules; a block composes the rules
of its parts:

>>> block = add(chain(group_norm(32, 64), same(), conv(64, 64, 3, padding=1)), same())
>>> block((64, 16, 16)).shape
(64, 16, 16)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
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


def same() -> Rule:
    """The shape stays, every position by itself, no parameters: activations, dropout."""
    return lambda shape: Step(shape, 0, 0, local(len(shape) - 1))


def pointwise(channels: int | None = None, parameters: int = 0) -> Rule:
    """The shape stays, every position by itself, with `parameters` trainable numbers: batch norm, norms over channels.

    `channels` is the number that it takes, any where that is None.
    """

    def rule(shape: Shape) -> Step:
        if channels is not None:
            _takes(shape, channels)
        return Step(shape, parameters, 0, local(len(shape) - 1))

    return rule


def conv(
    in_channels: int,
    out_channels: int,
    kernel_size: int | Shape,
    stride: int | Shape = 1,
    padding: int | Shape = 0,
    dilation: int | Shape = 1,
    groups: int = 1,
    bias: bool = True,
    padding_mode: str = "zeros",
) -> Rule:
    """A convolution over all spatial axes of its input."""
    _divides("groups", groups, in_channels=in_channels, out_channels=out_channels)

    def rule(shape: Shape) -> Step:
        _takes(shape, in_channels)
        most = {"reflect": -1, "circular": 0}.get(padding_mode)
        for n, p in zip(shape[1:], per_axis(padding, len(shape) - 1), strict=True):
            if most is not None and p > n + most:
                raise ShapeError(f"{padding_mode} padding of {p} does not fit the input of {text(shape[1:])}")
        kernel, reach, out, notes = _windows(shape, kernel_size, stride, padding, dilation)
        weights = out_channels * (in_channels // groups) * math.prod(kernel)
        parameters = weights + out_channels * bias
        return Step((out_channels, *out), parameters, weights * math.prod(out), reach, notes)

    return rule


def conv_transpose(
    in_channels: int,
    out_channels: int,
    kernel_size: int | Shape,
    stride: int | Shape = 1,
    padding: int | Shape = 0,
    output_padding: int | Shape = 0,
    dilation: int | Shape = 1,
    groups: int = 1,
    bias: bool = True,
) -> Rule:
    """A transposed convolution over all spatial axes of its input."""
    _divides("groups", groups, in_channels=in_channels, out_channels=out_channels)

    def rule(shape: Shape) -> Step:
        _takes(shape, in_channels)
        space = shape[1:]
        k, s, p, o, d = (per_axis(v, len(space)) for v in (kernel_size, stride, padding, output_padding, dilation))
        for extra, step, hole in zip(o, s, d, strict=True):
            if extra >= max(step, hole):
                raise ValueError(f"output-padding {extra} wants to be smaller than stride or dilation")
        spans = [dil * (ker - 1) for dil, ker in zip(d, k, strict=True)]
        out = tuple(
            (n - 1) * step - 2 * pad + span + extra + 1
            for n, step, pad, span, extra in zip(space, s, p, spans, o, strict=True)
        )
        _not_empty(out, "the padding cuts the whole output away")
        reach = Reach(
            tuple(Fraction(1, step) for step in s),
            tuple(Fraction(pad - span, step) for pad, span, step in zip(p, spans, s, strict=True)),
            tuple(Fraction(pad, step) for pad, step in zip(p, s, strict=True)),
        )
        weights = in_channels * (out_channels // groups) * math.prod(k)
        return Step((out_channels, *out), weights + out_channels * bias, weights * math.prod(space), reach)

    return rule


def pool(kernel_size: int | Shape, stride: int | Shape | None = None, padding: int | Shape = 0) -> Rule:
    """Pooling windows; without a stride they stand side by side."""

    def rule(shape: Shape) -> Step:
        kernel, pad = per_axis(kernel_size, len(shape) - 1), per_axis(padding, len(shape) - 1)
        for k, p in zip(kernel, pad, strict=True):
            if 2 * p > k:
                raise ValueError(f"padding {p} is more than half of the kernel {k}")
        _, reach, out, notes = _windows(shape, kernel_size, kernel_size if stride is None else stride, padding, 1)
        return Step((shape[0], *out), 0, 0, reach, notes)

    return rule


def scale(scale_factor: int | Shape, overlap: int = 0) -> Rule:
    """Upsampling by a whole factor. `overlap`: neighbours that an output also reads (0 nearest, 1 linear, 2 cubic)."""

    def rule(shape: Shape) -> Step:
        factors = per_axis(scale_factor, len(shape) - 1)
        out = tuple(n * f for n, f in zip(shape[1:], factors, strict=True))
        low, high = zip(*(_taps(f, overlap) for f in factors), strict=True)
        return Step((shape[0], *out), 0, 0, Reach(tuple(Fraction(1, f) for f in factors), low, high))

    return rule


def _taps(factor: int, overlap: int) -> tuple[Fraction, Fraction]:
    """The inputs that output `o` of an upsampling reads, from the first to the last, relative to `o / factor`.

    Output `o` lies at (o + 1/2) / factor - 1/2 of the input. Interpolation reads `overlap` positions on either side;
    the extremes are the last phase before an input position (`low`) and the first behind one (`high`).
    """
    if overlap == 0 or factor == 1:
        return Fraction(1 - factor, factor), Fraction(0)
    before, behind = factor // 2 - 1, (factor + 1) // 2
    return Fraction(-before, factor) - overlap, Fraction(-behind, factor) + overlap


def resize(output_size: int | Shape) -> Rule:
    """A fixed output size whatever comes in, as adaptive pooling gives."""

    def rule(shape: Shape) -> Step:
        axes = len(shape) - 1
        return Step((shape[0], *per_axis(output_size, axes)), 0, 0, _everywhere(axes))

    return rule


def unshuffle(factor: int) -> Rule:
    """Space to channels: (c, h, w) -> (c * factor^2, h / factor, w / factor), and so for other numbers of axes."""

    def rule(shape: Shape) -> Step:
        axes = len(shape) - 1
        if any(n % factor for n in shape[1:]):
            raise ShapeError(f"takes sizes that {factor} divides, but {text(shape[1:])} comes in")
        reach = Reach((Fraction(factor),) * axes, (Fraction(0),) * axes, (Fraction(factor - 1),) * axes)
        return Step((shape[0] * factor**axes, *(n // factor for n in shape[1:])), 0, 0, reach)

    return rule


def shuffle(factor: int) -> Rule:
    """Channels to space: (c * factor^2, h, w) -> (c, h * factor, w * factor), and so for other numbers of axes."""

    def rule(shape: Shape) -> Step:
        axes = len(shape) - 1
        if shape[0] % factor**axes:
            raise ShapeError(f"takes a multiple of {factor**axes} channels, but {shape[0]} come in")
        reach = Reach((Fraction(1, factor),) * axes, (Fraction(1 - factor, factor),) * axes, (Fraction(0),) * axes)
        return Step((shape[0] // factor**axes, *(n * factor for n in shape[1:])), 0, 0, reach)

    return rule


def group_norm(num_groups: int, num_channels: int, affine: bool = True) -> Rule:
    """Group normalisation: means and variances over space and the channels of a group."""
    _divides("num-groups", num_groups, num_channels=num_channels)

    def rule(shape: Shape) -> Step:
        _takes(shape, num_channels)
        reach = replace(local(len(shape) - 1), statistics=True)
        single = num_groups == num_channels and math.prod(shape[1:]) == 1
        notes = ("every group holds a single number, which normalises to zero",) if single else ()
        return Step(shape, 2 * num_channels * affine, 0, reach, notes)

    return rule


def attention(channels: int, projections: int = 4, bias: bool = True) -> Rule:
    """Self-attention over all positions with `projections` c x c maps (query, key, value, output)."""

    def rule(shape: Shape) -> Step:
        _takes(shape, channels)
        positions, axes = math.prod(shape[1:]), len(shape) - 1
        parameters = projections * (channels * channels + channels * bias)
        macs = projections * channels * channels * positions + 2 * channels * positions * positions
        return Step(shape, parameters, macs, _everywhere(axes))

    return rule


def chain(*rules: Rule) -> Rule:
    """One rule after the other."""

    def rule(shape: Shape) -> Step:
        step = Step(shape, 0, 0, local(len(shape) - 1))
        for each in rules:
            after = each(step.shape)
            step = Step(
                after.shape,
                step.parameters + after.parameters,
                step.macs + after.macs,
                step.reach.then(after.reach),
                step.notes + after.notes,
            )
        return step

    return rule


def add(body: Rule, shortcut: Rule) -> Rule:
    """Two paths from the same input whose outputs, of one shape, are added."""

    def rule(shape: Shape) -> Step:
        one, two = body(shape), shortcut(shape)
        if one.shape != two.shape:
            raise ShapeError(f"adds {text(one.shape)} to {text(two.shape)}: both paths must give the same shape")
        return Step(
            one.shape,
            one.parameters + two.parameters,
            one.macs + two.macs,
            one.reach.union(two.reach),
            one.notes + two.notes,
        )

    return rule


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


def _windows(
    shape: Shape, kernel_size: int | Shape, stride: int | Shape, padding: int | Shape, dilation: int | Shape
) -> tuple[Shape, Reach, Shape, tuple[str, ...]]:
    """Kernel per axis, reach, output size and notes of a window that slides over the input."""
    space = shape[1:]
    k, s, p, d = (per_axis(v, len(space)) for v in (kernel_size, stride, padding, dilation))
    spans = tuple(dil * (ker - 1) + 1 for dil, ker in zip(d, k, strict=True))
    for n, span, pad in zip(space, spans, p, strict=True):
        if span > n + 2 * pad:
            raise ShapeError(f"the window of {text(spans)} does not fit the input of {text(space)}")
    out = tuple((n + 2 * pad - span) // step + 1 for n, pad, span, step in zip(space, p, spans, s, strict=True))
    reach = Reach(
        tuple(Fraction(step) for step in s),
        tuple(Fraction(-pad) for pad in p),
        tuple(Fraction(span - 1 - pad) for span, pad in zip(spans, p, strict=True)),
    )
    notes = []
    if any(step > span for step, span in zip(s, spans, strict=True)):
        notes.append(
            f"the stride {_one(s)} is larger than the kernel {_one(spans)}: pixels between the windows are never read"
        )
    unread = tuple(
        n - ((count - 1) * step - pad + span) for n, count, step, pad, span in zip(space, out, s, p, spans, strict=True)
    )
    if any(left > max(0, step - span) for left, step, span in zip(unread, s, spans, strict=True)):
        notes.append(f"the input {text(space)} is not covered: the last {max(unread)} rows or columns are never read")
    return k, reach, out, tuple(notes)


def _one(values: Shape) -> str:
    return str(values[0]) if len(set(values)) == 1 else text(values)


def _everywhere(axes: int) -> Reach:
    reach = local(axes)
    return Reach(reach.stride, reach.low, reach.high, everywhere=True)


def _takes(shape: Shape, channels: int) -> None:
    if shape[0] != channels:
        raise ShapeError(f"takes {channels} channels, but {shape[0]} come in", expected=channels)


def _divides(name: str, number: int, **channels: int) -> None:
    for what, count in channels.items():
        if count % number:
            raise ValueError(f"{name} {number} does not divide {what.replace('_', '-')} {count}")


def _not_empty(space: Shape, why: str) -> None:
    if any(n < 1 for n in space):
        raise ShapeError(why)
