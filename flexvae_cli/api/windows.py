"""Static rules of windows that slide over their input: convolutions and poolings."""

from __future__ import annotations

import math
from fractions import Fraction

from flexvae_cli.api.step import Reach, Rule, Shape, ShapeError, Step, divides, per_axis, takes, text


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
    divides("groups", groups, in_channels=in_channels, out_channels=out_channels)

    def rule(shape: Shape) -> Step:
        takes(shape, in_channels)
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
    divides("groups", groups, in_channels=in_channels, out_channels=out_channels)

    def rule(shape: Shape) -> Step:
        takes(shape, in_channels)
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


def _not_empty(space: Shape, why: str) -> None:
    if any(n < 1 for n in space):
        raise ShapeError(why)
