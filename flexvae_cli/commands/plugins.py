"""`flexvae plugins`: what is installed, what it brings, and what is wrong with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from flexvae_cli import ui
from flexvae_cli.commands.options import JsonOption

if TYPE_CHECKING:
    from flexvae_cli.plugins import Plugin

SLOW = 1.0  # seconds that a plugin may take to load before it is told


def plugins(
    as_json: JsonOption = False,
    timings: Annotated[bool, typer.Option("--timings", help="Show how long each plugin takes to load.")] = False,
) -> None:
    """List the plugins and their problems.

    A broken plugin costs nothing but itself.
    """
    from flexvae_cli.plugins import installed

    loaded = installed()
    found = loaded.found
    if as_json:
        ui.json(
            {
                "plugins": [_described(plugin) for plugin in found],
                "problems": [str(problem) for problem in loaded.problems],
            }
        )
    else:
        _print_table(found, timings)
        for plugin in found:
            for problem in plugin.problems:
                ui.data(f"{_who(plugin)}: {problem}")
        for chosen in loaded.problems:
            ui.data(str(chosen))
    for plugin in found:
        if plugin.seconds > SLOW:
            ui.warn(f"{_who(plugin)} takes {plugin.seconds:.1f} s to load; it slows every command down")


def _who(plugin: Plugin) -> str:
    return f"{plugin.name} ({plugin.distribution} {plugin.version})"


def _print_table(found: tuple[Plugin, ...], timings: bool) -> None:
    columns = [
        ui.Column("plugin"),
        ui.Column("distribution"),
        ui.Column("version"),
        ui.Column("brings", shrink=True),
        ui.Column("state", shrink=True),
        ui.Column("ms", number=True),
    ]
    rows = [
        (p.name, p.distribution, p.version, _brings(p), _state(p), f"{1000 * p.seconds:.0f}" if not p.skipped else "")
        for p in found
    ]
    shown = len(columns) if timings else -1
    ui.table(columns[:shown], [row[:shown] for row in rows])


def _brings(plugin: Plugin) -> str:
    """`7 layers, 2 losses`."""
    kinds = [spec.kind for spec in plugin.specs]
    plural = {"loss": "losses"}
    counts = [(kind, kinds.count(kind)) for kind in dict.fromkeys(kinds)]
    return ", ".join(f"{n} {kind if n == 1 else plural.get(kind, kind + 's')}" for kind, n in counts)


def _state(plugin: Plugin) -> str:
    return f"{plugin.state}: {plugin.skipped}" if plugin.skipped else plugin.state


def _described(plugin: Plugin) -> dict[str, Any]:
    return {
        "name": plugin.name,
        "distribution": plugin.distribution,
        "version": plugin.version,
        "module": plugin.module,
        "state": plugin.state,
        "hooks": list(plugin.hooks),
        "specs": [{"kind": spec.kind, "name": spec.name} for spec in plugin.specs],
        "problems": list(plugin.problems),
        "skipped": plugin.skipped,
        "seconds": round(plugin.seconds, 6),
    }
