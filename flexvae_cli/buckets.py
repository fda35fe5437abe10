"""Aspect-ratio buckets: shapes of about as many pixels as the input, so that training need not crop to one of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from flexvae_cli.api.trace import Shape
from flexvae_cli.errors import Problem, UsageError
from flexvae_cli.net import Net

LEAST = 0.75  # of the pixels of the input, that another shape has
SPACING = 1.25  # between the aspect ratios of neighbours: the nearest one cuts off a ninth of an image at most
WHERE = "data.max_aspect_ratio"


@dataclass(frozen=True)
class Grid:
    """The sizes that a net takes around a shape.

    Attributes:
        shape: (c, h, w); others have at most as many pixels.
        steps: by how much height and width can change.
        most: the largest ratio of the longer to the shorter side.
    """

    shape: Shape
    steps: Shape
    most: float

    @classmethod
    def of(cls, net: Net, shape: Shape, most: float) -> Grid:
        """The grid of a net.

        Raises:
            UsageError: it takes one size alone.
        """
        larger = replace(net, shape=shape).fitting(tuple(size + 1 for size in shape[1:]))
        return cls(shape, tuple(b - a for a, b in zip(shape[1:], larger, strict=True)), most)

    def nearest(self, ratio: float) -> Shape:
        """The shape whose width stands to its height most nearly as `ratio`, and among those the largest."""
        channels, height, width = self.shape
        pixels, (rise, reach) = height * width, self.steps
        found = [self.shape]
        for h in range(height % rise or rise, math.isqrt(int(pixels * self.most)) + 1, rise):
            w = width + (min(pixels // h, int(h * self.most)) - width) // reach * reach
            if h * w >= LEAST * pixels and h <= w * self.most:
                found.append((channels, h, w))
        return min(found, key=lambda each: (abs(math.log(each[2] / each[1] / ratio)), -each[1] * each[2]))


def buckets_of(net: Net, shape: Shape, most: float) -> tuple[Shape, ...]:
    """Shapes up to the ratio `most` of their sides, wide and high, that come back from a net as large as they went in.

    Args:
        net: the autoencoder.
        shape: of an image, (c, h, w); the first of the result.
        most: above 1.

    Raises:
        UsageError: there is no other one.
    """
    try:
        grid = Grid.of(net, shape, most)
    except UsageError:
        what = "this net takes images of one size alone"
        raise UsageError(what, where=WHERE, hint="leave it out") from None
    count = math.ceil(math.log(most) / math.log(SPACING))
    found = dict.fromkeys([shape, *(grid.nearest(most ** (k / count)) for k in range(-count, count + 1))])
    if len(found) == 1:
        steps = "x".join(map(str, grid.steps))
        what = (
            f"no other shape has at most {math.prod(shape[1:]):,} pixels and that ratio; sizes go in steps of {steps}"
        )
        raise UsageError(what, where=WHERE, hint="raise it, or data.input")
    wrong = [problem for each in found for problem in _problems(net, each)]
    if wrong:
        raise UsageError(*wrong)
    return tuple(found)


def buckets_like(buckets: tuple[Shape, ...], net: Net, shape: Shape, most: float) -> tuple[Shape, ...]:
    """Those of a phase with another input, one for each: the first is its input, the others have their aspect ratios.

    Raises:
        UsageError: the net does not take them.
    """
    grid = Grid.of(net, shape, most)
    found = (shape, *(grid.nearest(width / height) for _, height, width in buckets[1:]))
    wrong = [problem for each in dict.fromkeys(found) for problem in _problems(net, each)]
    if wrong:
        raise UsageError(*wrong)
    return found


def _problems(net: Net, shape: Shape) -> list[Problem]:
    """What is wrong with a net at a shape."""
    try:
        replace(net, shape=shape).checked()
    except UsageError as error:
        at = "x".join(map(str, shape))
        return [replace(problem, what=f"{problem.what} (at {at}, of {WHERE})") for problem in error.problems]
    return []
