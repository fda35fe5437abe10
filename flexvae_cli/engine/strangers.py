"""Layers of third parties, held to what their trace rules said of them before anything is trained."""

from __future__ import annotations

from collections.abc import Iterable

from flexvae_cli import plugins
from flexvae_cli.api import LayerSpec, ShapeError
from flexvae_cli.api.trace import text
from flexvae_cli.engine.build import meta_step
from flexvae_cli.entry_points import CORE
from flexvae_cli.errors import Problem, UsageError
from flexvae_cli.faults import place_of
from flexvae_cli.tracing import Row


def require_as_traced(rows: Iterable[Row]) -> None:
    """Run what plugins bring on torch's meta device, at the shapes of a trace, and compare.

    A layer that cannot run there is not compared: it may well run elsewhere, and says itself what is wrong.

    Raises:
        UsageError: every layer whose output or parameters are not what its rule says, with the plugin it comes with.
    """
    problems = []
    for row in {(row.bound.code, row.takes): row for row in rows}.values():
        spec, origin = row.bound.spec, plugins.installed().origin(row.bound.spec)
        if not row.ruled or not isinstance(spec, LayerSpec) or not spec.meta or origin.partition(" ")[0] in ("", CORE):
            continue
        try:
            step = meta_step(row.bound, row.takes)
        except ShapeError:
            continue
        if (step.shape, step.parameters) != (row.gives, row.parameters):
            said = f"{text(row.gives)} and {row.parameters:,} parameters"
            what = f"gives {text(step.shape)} and has {step.parameters:,} parameters; its trace rule says {said}"
            at = place_of(spec.factory)
            problems.append(Problem(f"{row.bound.code} ({origin}) {what} ({at})", row.where))
    if problems:
        raise UsageError(*problems)
