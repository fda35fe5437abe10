"""Static rules: what a layer does to shapes, parameters, multiply-adds and reach, in plain arithmetic, without torch.

A rule maps an input shape `(channels, *space)` to a `Step`. The functions below make rules; a block composes the rules
of its parts:

>>> block = add(chain(group_norm(32, 64), same(), conv(64, 64, 3, padding=1)), same())
>>> block((64, 16, 16)).shape
(64, 16, 16)
"""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

from flexvae_cli.api.step import (
    Reach,
    Rule,
    Shape,
    ShapeError,
    Step,
    divides,
    everywhere,
    local,
    per_axis,
    takes,
    text,
)
from flexvae_cli.api.windows import conv, conv_transpose, pool

__all__ = [
    "Reach",
    "Rule",
    "Shape",
    "ShapeError",
    "Step",
    "add",
    "attention",
    "chain",
    "conv",
    "conv_transpose",
    "group_norm",
    "local",
    "per_axis",
    "pointwise",
    "pool",
    "resize",
    "same",
    "scale",
    "shuffle",
    "text",
    "unshuffle",
]


def same() -> Rule:
    """The shape stays, every position by itself, no parameters: activations, dropout."""
    return lambda shape: Step(shape, 0, 0, local(len(shape) - 1))


def pointwise(channels: int | None = None, parameters: int = 0) -> Rule:
    """The shape stays, every position by itself, with `parameters` trainable numbers: batch norm, norms over channels.

    `channels` is the number that it takes, any where that is None.
    """

    def rule(shape: Shape) -> Step:
        if channels is not None:
            takes(shape, channels)
        return Step(shape, parameters, 0, local(len(shape) - 1))

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
        return Step((shape[0], *per_axis(output_size, axes)), 0, 0, everywhere(axes))

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
    divides("num-groups", num_groups, num_channels=num_channels)

    def rule(shape: Shape) -> Step:
        takes(shape, num_channels)
        reach = replace(local(len(shape) - 1), statistics=True)
        single = num_groups == num_channels and math.prod(shape[1:]) == 1
        notes = ("every group holds a single number, which normalises to zero",) if single else ()
        return Step(shape, 2 * num_channels * affine, 0, reach, notes)

    return rule


def attention(channels: int, projections: int = 4, bias: bool = True) -> Rule:
    """Self-attention over all positions with `projections` c x c maps (query, key, value, output)."""

    def rule(shape: Shape) -> Step:
        takes(shape, channels)
        positions, axes = math.prod(shape[1:]), len(shape) - 1
        parameters = projections * (channels * channels + channels * bias)
        macs = projections * channels * channels * positions + 2 * channels * positions * positions
        return Step(shape, parameters, macs, everywhere(axes))

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
