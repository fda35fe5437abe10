"""`flexvae plugins`: what is installed and what is wrong with it; `new` and `check` for those who write one."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flexvae_cli import ui
from flexvae_cli.commands.check_plugin import check_plugin
from flexvae_cli.commands.options import JsonOption

if TYPE_CHECKING:
    from flexvae_cli.entry_points import Claim
    from flexvae_cli.plugins import Plugin

app = typer.Typer()
app.command("check")(check_plugin)


@app.callback(invoke_without_command=True)
def plugins(
    context: typer.Context,
    as_json: JsonOption = False,
    timings: Annotated[bool, typer.Option("--timings", help="Show how long each plugin takes to load.")] = False,
) -> None:
    """List the plugins and their problems; write a new one; check one.

    A broken plugin costs nothing but itself.
    """
    if context.invoked_subcommand is None:
        _list(getattr(context.find_root().command, "commands", {}), as_json, timings)
    elif as_json or timings:
        from flexvae_cli.errors import UsageError

        given = "--json" if as_json else "--timings"
        raise UsageError(f"{given} stands before '{context.invoked_subcommand}'", hint="options of a command follow it")


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="The distribution's name, such as flexvae-layers-sine.")],
    folder: Annotated[
        Path | None, typer.Argument(metavar="DIR", show_default=False, help="The new folder; by default NAME.")
    ] = None,
    code: Annotated[str, typer.Option(help="The abbreviation of its layer; by default made of NAME.")] = "",
) -> None:
    """Write a new plugin: a package with one layer, its tests, a README and a licence.

    It passes its own tests and `flexvae plugins check` as it is.
    """
    from flexvae_cli.engine.folders import write_folder
    from flexvae_cli.errors import UsageError
    from flexvae_cli.kit.new import files_of, names_of
    from flexvae_cli.paths import shown
    from flexvae_cli.plugins import installed

    names, target = names_of(name, code, installed().registry), folder or Path(name)
    if target.resolve() == Path.cwd():
        raise UsageError("is the working directory", where=str(target), hint="leave DIR out, or name a new folder")
    files = files_of(names)
    write_folder(target, files)
    for file in files:
        ui.say(f"wrote {shown(target / file)}")
    ui.say(f"next: pip install -e {shown(target)}, flexvae plugins check {shown(target)}, flexvae layers {names.code}")


def _list(core: Collection[str], as_json: bool, timings: bool) -> None:
    from flexvae_cli.entry_points import command_problems, installed_commands
    from flexvae_cli.plugins import SLOW, installed

    loaded, commands = installed(), installed_commands()
    found = loaded.found
    problems = [str(problem) for problem in (*loaded.problems, *command_problems(commands, core))]
    if as_json:
        ui.json(
            {
                "plugins": [_described(plugin) for plugin in found],
                "commands": [_announced(claim) for claim in commands],
                "problems": problems,
            }
        )
    else:
        _print_table(found, commands, timings)
        for plugin in found:
            for problem in plugin.problems:
                ui.data(f"{_who(plugin)}: {problem}")
        for problem in problems:
            ui.data(problem)
    for plugin in found:
        if plugin.seconds > SLOW:
            ui.warn(f"{_who(plugin)} takes {plugin.seconds:.1f} s to load; it slows every command down")


def _who(plugin: Plugin) -> str:
    return f"{plugin.name} ({plugin.distribution} {plugin.version})"


def _print_table(found: tuple[Plugin, ...], commands: list[Claim], timings: bool) -> None:
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
    rows += [(c.name, c.distribution, c.version, f"command {c.name}", c.skipped or "not loaded", "") for c in commands]
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


def _announced(claim: Claim) -> dict[str, Any]:
    return {
        "name": claim.name,
        "distribution": claim.distribution,
        "version": claim.version,
        "object": claim.point.value,
        "skipped": claim.skipped,
    }


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
