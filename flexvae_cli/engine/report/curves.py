"""The curves of a run: one chart per number, in groups."""

from __future__ import annotations

from collections.abc import Iterator

from flexvae_cli.engine.report.chart import Line, chart
from flexvae_cli.engine.report.facts import Facts
from flexvae_cli.engine.scalars import GROUPS, SCALARS, Group, Scalar, scalar

TITLES: dict[Group, str] = {
    "loss": "Loss and its terms",
    "quality": "Quality on validation images",
    "steering": "Optimization",
    "discriminator": "Discriminator",
    "speed": "Speed and memory",
}


def curves(facts: Facts) -> Iterator[tuple[str, list[str]]]:
    """A title and its charts for every group that has any."""
    found: dict[Scalar, list[Line]] = {}
    for colour, kind in enumerate(("train", "validation")):
        for name in names_of(facts, kind):
            known = scalar(name, kind)
            points = [(step, value * known.factor) for step, value in facts.column(kind, name)]
            if not known.quiet_zero or any(value for _, value in points):
                found.setdefault(known, []).append(Line(kind, points, colour))
    order = [*SCALARS.values()]
    known_first = sorted(found, key=lambda known: order.index(known) if known in order else len(order))
    for group in GROUPS:
        charts = [_chart(known, found[known], facts.step) for known in known_first if known.group == group]
        if shown := list(filter(None, charts)):
            yield TITLES[group], shown


def names_of(facts: Facts, kind: str) -> list[str]:
    """The numbers that were logged, as they come."""
    return list(dict.fromkeys(name for row in facts.rows if row.kind == kind for name in row.values))


def _chart(known: Scalar, lines: list[Line], last_step: int) -> str:
    kinds: dict[Group, str] = {"loss": "log", "steering": "log", "discriminator": "log", "speed": "zero"}
    kind = "zero" if known is SCALARS["lr"] else kinds.get(known.group, "linear")
    return chart(known.title, lines, last_step, known.unit, kind=kind)
