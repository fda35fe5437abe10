"""Line charts as SVG that a page holds inline, with the numbers that its script shows where somebody points."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from typing import NamedTuple

from flexvae_cli.engine.report.axis import Axis, make_axis, number

WIDTH, HEIGHT = 300, 178
LEFT, RIGHT, TOP, BOTTOM = 42, 8, 8, 20  # around the plot
MOST = 200  # points of a line; of more, neighbours are drawn as their mean and the band that they fill
FEW = 24  # points that are drawn as dots as well
LARGEST = 1e300

Points = Sequence[tuple[int, float]]


@dataclass(frozen=True, slots=True)
class Line:
    """A named line of (step, number) in the colour of the class `line-N`; where the number is not finite is a gap."""

    name: str
    points: Points
    colour: int = 0


class Stretch(NamedTuple):
    """Neighbouring points that are drawn as one; `mean` is NaN where there is nothing to draw."""

    step: float
    mean: float
    low: float
    high: float


def chart(title: str, lines: Sequence[Line], last_step: int, unit: str = "", *, kind: str = "linear") -> str:
    """A figure with its title, a legend where there are several lines, and the plot; empty where nothing is finite.

    Args:
        title: above the plot.
        lines: what to draw.
        last_step: where x ends; it begins at 0.
        unit: of y.
        kind: of the y axis, see `make_axis`.
    """
    drawn = [(line, thinned(line.points)) for line in lines]
    ends = [n for _, stretches in drawn for s in stretches if drawable(s.mean) for n in (s.low, s.high)]
    if not ends:
        return ""
    across = Axis(0, max(1, last_step), LEFT, WIDTH - RIGHT)
    up = make_axis(min(ends), max(ends), HEIGHT - BOTTOM, TOP, kind)
    told = {line.name: [_told(s) for s in stretches if drawable(s.mean)] for line, stretches in drawn}
    last = [f"{name} {number(points[-1][1])}" for name, points in told.items() if points]
    label = f"{title} over the steps; last: {', '.join(last)}"
    return "".join(
        [
            f'<figure class="chart"><figcaption><b>{escape(title)}</b>{_unit(unit)}{_legend(lines)}',
            f'</figcaption><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}" ',
            f'data-lines="{escape(json.dumps(told, allow_nan=False))}" data-last="{across.high}" ',
            f'data-plot="{LEFT} {WIDTH - RIGHT} {TOP} {HEIGHT - BOTTOM}">',
            *_axes(across, up),
            *(_drawn(line.colour, stretches, across, up) for line, stretches in drawn),
            "</svg></figure>",
        ]
    )


def _told(stretch: Stretch) -> list[float]:
    """What a script shows: step and mean, and where they differ least and greatest."""
    numbers = [float(f"{n:.4g}") for n in stretch[1:]]
    return [stretch.step, *(numbers if stretch.low < stretch.high else numbers[:1])]


def _unit(unit: str) -> str:
    return f"<small>{escape(unit)}</small>" if unit else ""


def _legend(lines: Sequence[Line]) -> str:
    names = [f'<span class="key line-{line.colour}">{escape(line.name)}</span>' for line in lines]
    return "".join(names) if len(names) > 1 else ""


def drawable(value: float) -> bool:
    """Whether a number is finite, and small enough to reckon with."""
    return abs(value) < LARGEST  # false for NaN


def _axes(across: Axis, up: Axis) -> Iterator[str]:
    for tick, text in up.ticks():
        y = round(up.at(tick), 1)
        yield f'<path class="grid" d="M{LEFT} {y}H{WIDTH - RIGHT}"/>'
        yield f'<text x="{LEFT - 5}" y="{y + 3.5}" text-anchor="end">{text}</text>'
    yield f'<path class="axis" d="M{LEFT} {HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>'
    for tick, text in across.ticks():
        if tick == int(tick):
            yield f'<text x="{across.at(tick):.1f}" y="{HEIGHT - 5}" text-anchor="middle">{text}</text>'
    if up.logarithmic:
        yield f'<text x="{LEFT - 14}" y="{HEIGHT - 5}" text-anchor="end" class="log">log</text>'


def _drawn(colour: int, stretches: Sequence[Stretch], across: Axis, up: Axis) -> str:
    """The line of the means, the band between least and greatest, and dots where there are few."""
    line, band, dots = [], [], []
    for there, run in groupby(stretches, key=lambda s: drawable(s.mean)):
        pieces = list(run) if there else []
        means, lows, highs = ([f"{across.at(s.step):.1f} {up.at(s[n]):.1f}" for s in pieces] for n in (1, 2, 3))
        line += [f"M{'L'.join(means)}"] * bool(pieces)
        band += [f"M{'L'.join(lows + highs[::-1])}Z"] * any(s.low < s.high for s in pieces)
        dots += [f"M{place}h0" for place in means]  # with round caps, a dot
    paths = {"band": band, "line": line, "dots": dots if len(dots) <= FEW else []}
    return "".join(f'<path class="{kind} line-{colour}" d="{"".join(d)}"/>' for kind, d in paths.items() if d)


def thinned(points: Points, most: int = MOST) -> list[Stretch]:
    """At most about `most` stretches of as many neighbours each; no spike is lost, and gaps stay where all is a gap."""
    every = max(1, math.ceil(len(points) / most))
    found = []
    for begin in range(0, len(points), every):
        part = points[begin : begin + every]
        finite = [value for _, value in part if drawable(value)]
        mean = math.fsum(finite) / len(finite) if finite else math.nan
        step = sum(step for step, _ in part) / len(part)
        found.append(Stretch(round(step), mean, min(finite, default=mean), max(finite, default=mean)))
    return found
