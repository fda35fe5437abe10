"""A picture of a net, SVG or PNG: boxes as tall as the resolution and as wide as the channels."""

from __future__ import annotations

import io
from collections.abc import Sequence
from itertools import groupby, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flexvae_cli.errors import UsageError
from flexvae_cli.inspection import Inspection
from flexvae_cli.inspection.drawing_layout import END, GAP, LINE, SLANT, TALL, Arc, Box, Scene, arc_height, scene_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".svg", ".png")
ROLES = {
    "convolution": "#eebd5a",
    "block": "#c0452f",
    "attention": "#3f2a78",
    "normalisation": "#d5d8dc",
    "activation": "#f4ead5",
    "downsampling": "#5aa39f",
    "upsampling": "#7fb2da",
    "bottleneck": "#24633b",
    "other": "#9a8f97",
}
"""What a layer does -> its colour; the lightness differs too, so that print in grey keeps them apart."""

MARGIN = 0.08
INK, FAINT = "#222222", "#8a8a8a"
POINTS = 6.5  # font size
LETTER = 0.0565  # inches, the mean width of a letter of that size
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "svg.hashsalt": "flexvae",
}  # one net, one file, wherever it is drawn


def draw(found: Inspection, path: Path) -> None:
    """Draw an inspected net to a file, which appears when it is whole.

    Raises:
        UsageError: the file is neither SVG nor PNG.
        ResourceError: it cannot be written.
    """
    form = path.suffix.lower()
    if form not in SUFFIXES:
        raise UsageError(f"a picture is .svg or .png, not '{path.suffix}'", where=str(path))
    from flexvae_cli.engine.files import replace_file, writing

    data = drawn(found, form)
    with writing(path, len(data)):
        replace_file(path, data)


def drawn(found: Inspection, form: str = ".svg") -> bytes:
    """The content of such a file, `.svg` or `.png`.

    Raises:
        UsageError: the net is too long to be drawn.
    """
    import matplotlib as mpl

    data = io.BytesIO()
    with mpl.rc_context(STYLE):
        picture(found).savefig(data, format=form[1:], dpi=300, metadata={"Date": None} if form == ".svg" else None)
    return data.getvalue()


def picture(found: Inspection) -> Figure:
    """The drawing, as large as its content; one inch of it is one inch of paper.

    Raises:
        UsageError: the net is too long to be drawn.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    scene = scene_of(found)
    width = scene.boxes[-1].right + scene.boxes[-1].slant[0] + END
    legend = _legend(scene.boxes, width)
    tops = [arc_height(arc, scene) + (LINE if arc.label else 0.05) for arc in scene.arcs]
    top = max([TALL / 2 + SLANT[1], *tops]) + (2.6 * LINE if found.net else 0.05)
    codes = -TALL / 2 - 0.1 - LINE
    brackets = codes - LETTER * max(len(box.block.label) for box in scene.boxes) - 0.16
    bottom = brackets - 0.3 - LINE * 1.3 * len(legend)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width + 2 * MARGIN, top - bottom + 2 * MARGIN))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(-MARGIN, width + MARGIN), ylim=(bottom - MARGIN, top + MARGIN))
        axes.axis("off")
        _draw_flow(axes, found, scene)
        _draw_labels(axes, scene.boxes, codes)
        _draw_resolutions(axes, scene.boxes, brackets)
        for box in scene.boxes:
            _draw_box(axes, box)
        for arc in scene.arcs:
            _draw_arc(axes, arc, arc_height(arc, scene))
        _draw_parts(axes, found, scene.boxes, top)
        for row, names in enumerate(reversed(legend)):
            _draw_legend(axes, names, width, bottom + 1.3 * LINE * row)
        figure.canvas.draw()
    return figure


def _draw_box(axes: Axes, box: Box) -> None:
    """Front, top and side, and a line between the layers of a repeat."""
    x, right, low, high = box.x, box.right, -box.height / 2, box.height / 2
    dx, dy = box.slant
    colour = ROLES[box.block.role]
    faces = (
        ([(x, high), (x + dx, high + dy), (right + dx, high + dy), (right, high)], _shade(colour, 0.45)),
        ([(right, low), (right + dx, low + dy), (right + dx, high + dy), (right, high)], _shade(colour, -0.22)),
        ([(x, low), (right, low), (right, high), (x, high)], colour),
    )
    for corners, face in faces:
        axes.add_patch(_polygon(corners, face))
    count = min(box.block.count, 6)
    for number in range(1, count):
        at = x + (right - x) * number / count
        axes.plot(
            [at, at, at + dx], [low, high, high + dy], color="white", linewidth=0.5, solid_joinstyle="round", zorder=4
        )


def _polygon(corners: list[tuple[float, float]], face: Any) -> Any:
    from matplotlib.patches import Polygon

    return Polygon(corners, closed=True, facecolor=face, edgecolor=INK, linewidth=0.45, joinstyle="round", zorder=3)


def _shade(colour: str, amount: float) -> tuple[float, ...]:
    """Lighter (towards white) or darker (towards black) by a fraction."""
    from matplotlib.colors import to_rgb

    goal = 1.0 if amount > 0 else 0.0
    return tuple(c + (goal - c) * abs(amount) for c in to_rgb(colour))


def _draw_labels(axes: Axes, boxes: Sequence[Box], at: float) -> None:
    """Below each box a leader, the channels where they change, and the code, upright."""
    before: tuple[str, int] | None = None
    for box in boxes:
        channels = box.block.line.gives[0]
        leader = at + LINE if (box.part, channels) != before else at + 0.04
        axes.plot(
            [box.middle] * 2, [-box.height / 2, leader], color=FAINT, linewidth=0.3, linestyle=(0, (1, 2)), zorder=1
        )
        if (box.part, channels) != before:
            axes.text(box.middle, at + 0.5 * LINE, str(channels), **_font(), weight="bold", ha="center", va="center")
        axes.text(box.middle, at, box.block.label, **_font(), rotation=90, ha="center", va="top")
        before = box.part, channels


def _font(points: float = POINTS) -> dict[str, Any]:
    return {"fontsize": points, "color": INK}


def _draw_flow(axes: Axes, found: Inspection, scene: Scene) -> None:
    """The arrow that runs through all boxes, with the input's and output's shape at its ends."""
    boxes = scene.boxes
    for before, after in pairwise(boxes):
        start = before.right + before.slant[0] / 2
        axes.plot([start, after.x], [0, 0], color=INK, linewidth=0.6, zorder=1)
        if after.x - before.right - before.slant[0] > 0.05:
            _draw_arrow(axes, after.x - 0.06, after.x)
    end = boxes[-1].right + boxes[-1].slant[0] / 2
    _draw_arrow(axes, boxes[0].x - 0.17, boxes[0].x)
    _draw_arrow(axes, end, max(scene.x - GAP, end) + 0.17)
    places = ((boxes[0].x - 0.2, found.shape, "right"), (max(scene.x - GAP, end) + 0.2, found.gives, "left"))
    for x, shape, side in places:
        axes.text(x, 0, "×".join(map(str, shape)), **_font(), ha=side, va="center")


def _draw_arrow(axes: Axes, start: float, end: float) -> None:
    style = {
        "arrowstyle": "-|>,head_length=0.22,head_width=0.11",
        "color": INK,
        "linewidth": 0.6,
        "shrinkA": 0,
        "shrinkB": 0,
    }
    axes.annotate("", (end, 0), (start, 0), arrowprops=style, zorder=2)


def _draw_resolutions(axes: Axes, boxes: Sequence[Box], at: float) -> None:
    """A bracket below each run of boxes of one resolution."""
    for space, run in groupby(boxes, key=lambda box: box.block.line.gives[1:]):
        inside = list(run)
        left, right = inside[0].x - 0.01, inside[-1].right + 0.01
        axes.plot([left, left, right, right], [at + 0.04, at, at, at + 0.04], color=INK, linewidth=0.5)
        axes.text((left + right) / 2, at - 0.03, "×".join(map(str, space)), **_font(), ha="center", va="top")


def _draw_parts(axes: Axes, found: Inspection, boxes: Sequence[Box], top: float) -> None:
    """The parts' names in a row above, and the latent's shape with an arrow to where it is."""
    for part in found.parts if found.net else ():
        inside = [box for box in boxes if box.part == part.name]
        middle = (inside[0].x + inside[-1].right) / 2
        if part.name == "bottleneck":
            size = "×".join(map(str, part.trace.gives))
            axes.text(middle, top, f"latent\n{size}", **_font(), ha="center", va="top", linespacing=1.2)
        else:
            axes.text(middle, top, part.name, **_font(POINTS + 1.5), weight="bold", ha="center", va="top")


def _legend(boxes: Sequence[Box], width: float) -> list[list[str]]:
    """The roles that occur, in rows that fit."""
    used = {box.block.role for box in boxes}
    rows: list[list[str]] = [[]]
    for name in (name for name in ROLES if name in used):
        if rows[-1] and _legend_width([*rows[-1], name]) > width:
            rows.append([])
        rows[-1].append(name)
    return rows


def _legend_width(names: Sequence[str]) -> float:
    return sum(0.28 + LETTER * len(name) for name in names)


def _draw_legend(axes: Axes, names: Sequence[str], width: float, y: float) -> None:
    """A row of swatches, centred."""
    x = (width - _legend_width(names)) / 2
    for name in names:
        axes.add_patch(_polygon([(x, y), (x + 0.09, y), (x + 0.09, y + 0.09), (x, y + 0.09)], ROLES[name]))
        axes.text(x + 0.13, y + 0.042, name, **_font(), ha="left", va="center")
        x += _legend_width([name])


def _draw_arc(axes: Axes, arc: Arc, high: float) -> None:
    """A line over the boxes from where the path forks to a plus where it joins, and what stands on it."""
    from matplotlib.patches import Circle

    axes.plot([arc.start, arc.start, arc.end, arc.end], [0, high, high, 0.04], color=INK, linewidth=0.6, zorder=2)
    axes.plot([arc.start], [0], marker="o", markersize=1.6, color=INK, zorder=5)
    axes.add_patch(Circle((arc.end, 0), 0.045, facecolor="white", edgecolor=INK, linewidth=0.6, zorder=5))
    axes.plot([arc.end - 0.026, arc.end + 0.026], [0, 0], color=INK, linewidth=0.6, zorder=6)
    axes.plot([arc.end, arc.end], [-0.026, 0.026], color=INK, linewidth=0.6, zorder=6)
    if arc.label:
        axes.text((arc.start + arc.end) / 2, high + 0.02, arc.label, **_font(POINTS - 1), ha="center", va="bottom")
