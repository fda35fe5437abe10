"""`flexvae report`: a run as one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flexvae_cli import ui
from flexvae_cli.commands.options import JsonOption
from flexvae_cli.errors import FlexVAEError, UsageError

if TYPE_CHECKING:
    from flexvae_cli.engine.report.facts import Facts
    from flexvae_cli.engine.report.page import Extras

SUFFIXES = (".html", ".htm")
MOST_BYTES = 4096  # at the beginning of a page, among which it says who made it


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run directory, as train.run_dir names it.")],
    output: Annotated[
        Path | None, typer.Argument(metavar="OUTPUT", show_default="RUN/report.html", help="The page to write.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write a run down as one HTML page.

    Curves, previews, latents, the net, the config, and what went wrong: a single file that opens without a network.

    The run may be finished, going on, or killed. An earlier report is replaced.
    """
    from flexvae_cli.engine.report.facts import read_run

    facts = read_run(run)
    target = output or run / "report.html"
    _check_target(target)
    from flexvae_cli.engine.files import replace_file, writing
    from flexvae_cli.engine.report.page import page
    from flexvae_cli.engine.report.summary import summary

    data = page(facts, _extras(facts)).encode("utf-8", "replace")
    with writing(target, len(data)):
        target.parent.mkdir(parents=True, exist_ok=True)
        replace_file(target, data)
    if as_json:
        ui.json({"report": str(target), "bytes": len(data), **summary(facts)})
    ui.say(f"wrote {target} ({len(data) / 1e6:.1f} MB)")


def _check_target(target: Path) -> None:
    """Refuse to replace what is no report."""
    from flexvae_cli.engine.report.page import GENERATOR

    if target.suffix.lower() not in SUFFIXES:
        raise UsageError(f"a report is .html, not '{target.suffix}'", where=str(target))
    if target.exists() and not (target.is_file() and GENERATOR.encode() in target.read_bytes()[:MOST_BYTES]):
        raise UsageError("is there already and is no report", where=str(target), hint="choose another OUTPUT")


def _extras(facts: Facts) -> Extras:
    """What takes the run's model: its net and its latents, or why they cannot be had."""
    from flexvae_cli.engine.report.page import Extras
    from flexvae_cli.inspection import inspect_target
    from flexvae_cli.inspection.document import document
    from flexvae_cli.inspection.drawing import drawn

    if facts.checkpoint is None:
        return Extras(structure_problem="there is no checkpoint yet", latents_problem="there is no checkpoint yet")
    try:
        found = inspect_target(facts.path)
    except FlexVAEError as error:
        return Extras(structure_problem=str(error), latents_problem=str(error))
    try:
        drawing, problem = drawn(found), ""
    except UsageError as error:  # the net is too long to be drawn
        drawing, problem = None, str(error)
    latents, latents_problem = _latents(facts)
    return Extras(document(found), drawing, problem, latents, latents_problem)


def _latents(facts: Facts) -> tuple[dict[str, object] | None, str]:
    from flexvae_cli.engine.report.latents import measured

    try:
        return measured(facts.path, facts.settings), ""
    except FlexVAEError as error:
        return None, str(error)
    except (RuntimeError, MemoryError) as error:  # torch's: whatever it is, it does not cost the rest of the page
        return None, (str(error).splitlines() or [type(error).__name__])[0]
