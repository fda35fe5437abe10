"""`flexvae data`: check."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flexvae_cli import ui
from flexvae_cli.commands._loaded import loaded_config
from flexvae_cli.commands.options import ConfigOption, JsonOption, SetOption
from flexvae_cli.errors import Exit, UsageError

if TYPE_CHECKING:
    from flexvae_cli.engine.data.audit import Seen
    from flexvae_cli.engine.data.sources import Item
    from flexvae_cli.engine.looking import Way

app = typer.Typer(no_args_is_help=True, help="Check data sets.")
SHOWN = 20  # lines of each list; --json has all
MAX_PIXELS = 64_000_000


class Range(Enum):
    """Which numbers are black and white where a file does not say."""

    TYPE = "type"
    FILE = "file"


@dataclass(frozen=True, slots=True)
class Part:
    """One side of a split: what it is called, how it is looked at, its files, and how many are for other readers."""

    path: str
    way: Way
    items: list[Item]
    others: dict[str, int] = field(default_factory=dict)


@app.callback()
def data() -> None:
    """Check data sets."""


@app.command()
def check(
    path: Annotated[
        str | None,
        typer.Argument(
            metavar="PATH",
            help="A folder of images, sounds, volumes, arrays or latents, or of tars of them, one file, or "
            "`builtin:scenery`.",
            show_default="data.source of the config",
        ),
    ] = None,
    validation: Annotated[
        str | None,
        typer.Option("--validation", metavar="PATH", help="Samples that must not be among them.", show_default=False),
    ] = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    reader: Annotated[
        str | None,
        typer.Option("--reader", metavar="NAME", help="What reads them.", show_default="the first that finds files"),
    ] = None,
    channels: Annotated[
        int | None,
        typer.Option("--channels", min=1, help="Of a sample.", show_default="3 of images, else what a file has"),
    ] = None,
    min_size: Annotated[
        int | None, typer.Option("--min-size", min=1, help="Least size along each axis.", show_default="1")
    ] = None,
    max_pixels: Annotated[
        int | None,
        typer.Option("--max-pixels", min=1, help="Most positions of a file.", show_default=str(MAX_PIXELS)),
    ] = None,
    span: Annotated[
        Range | None,
        typer.Option(
            "--range", help="Of numbers that state none: that of their type, or of each file.", show_default="type"
        ),
    ] = None,
    low: Annotated[float | None, typer.Option("--low", help="Their least number, instead.", show_default=False)] = None,
    high: Annotated[float | None, typer.Option("--high", help="Their greatest.", show_default=False)] = None,
    as_json: JsonOption = False,
) -> None:
    """Read every file of a data set and say what is in it.

    Tells formats, sizes, sample rates or spacings, and ranges, samples of a single value, samples that are there twice
    (whose numbers are the same, whatever the file), files that cannot be used and why, and samples that are in
    --validation as well. With --config, files are read as its table data says, PATH is its source by default, and what
    it holds out is compared with the rest. Exit code 3 where a file cannot be used, or a sample is on both sides.
    """
    options = {
        "--reader": reader,
        "--channels": channels,
        "--min-size": min_size,
        "--max-pixels": max_pixels,
        "--range": span and span.value,
        "--low": low,
        "--high": high,
    }
    if config is not None or overrides or path is None:
        parts = _of_config(path, validation, config, overrides, options)
    else:
        parts = _of_options(path, validation, options)
    result, wrong = _told(parts)
    if as_json:
        ui.json(result)
    else:
        _print(result)
    if wrong:
        raise typer.Exit(Exit.DATA)


def _of_config(
    path: str | None, validation: str | None, config: Path | None, overrides: list[str] | None, options: dict[str, Any]
) -> list[Part]:
    """Both sides of the split that a config makes.

    Raises:
        UsageError: there is no config, or something is said twice.
    """
    from flexvae_cli.plugins import installed
    from flexvae_cli.samples import data_problems

    given = [option for option, value in options.items() if value is not None]
    if given:
        hint = "leave it out, or override the config's with --set data.KEY=VALUE"
        raise UsageError(f"{', '.join(given)}: with a config its table data says that", hint=hint)
    table = loaded_config(config, overrides).settings.data
    table = table.model_copy(
        update={key: value for key, value in (("source", path), ("validation", validation)) if value is not None}
    )
    if problems := data_problems(table, installed().registry):
        raise UsageError(*problems)
    from flexvae_cli.engine.looking import held_out, way_of_config

    way, items = way_of_config(table)
    training, others = held_out(way, items, table)
    named = table.validation if isinstance(table.validation, str) else f"{table.validation:.3g} of {table.source}"
    return [Part(table.source, way, training), *([Part(named, way, others)] if others else [])]


def _of_options(path: str, validation: str | None, options: dict[str, Any]) -> list[Part]:
    """What the command line names, and what it names to be held out."""
    from flexvae_cli.engine.looking import listed, passed_over, way_of

    way, items = way_of(
        path,
        "PATH",
        reader=options["--reader"],
        values={key: options[f"--{key}"] for key in ("range", "low", "high") if options[f"--{key}"] is not None},
        channels=options["--channels"],
        least=options["--min-size"] or 1,
        most=options["--max-pixels"] or MAX_PIXELS,
    )
    others = {} if options["--reader"] else passed_over(way, items, path)
    for name, count in others.items():
        ui.say(f"note: {count:,} more for the reader {name} are not looked at: --reader {name} does")
    parts = [Part(path, way, items, others)]
    if validation is not None:
        parts.append(Part(validation, way, listed(way, validation, "--validation")))
    return parts


def _told(parts: list[Part]) -> tuple[dict[str, Any], bool]:
    """What is to be said of all sides, and whether anything is wrong."""
    from flexvae_cli.engine.data.audit import leaks

    sides, samples = zip(*map(_looked, parts), strict=True)
    result: dict[str, Any] = {**sides[0], "others": parts[0].others}
    wrong = any(side["unusable"] for side in sides)
    if len(sides) > 1:
        pairs = leaks(*samples)
        result["validation"] = sides[1]
        result["leaks"] = [{"training": one, "validation": other} for one, other in pairs]
        wrong = wrong or bool(pairs)
    return result, wrong


def _looked(part: Part) -> tuple[dict[str, Any], list[Seen]]:
    """What is to be said of one side, and its samples that can be used."""
    from flexvae_cli.engine.data.audit import Seen, Unusable, look_through
    from flexvae_cli.engine.data.summary import summary

    samples: list[Seen] = []
    unusable: list[Unusable] = []
    with ui.progress(len(part.items), "files") as advance:
        for done, found in enumerate(look_through(part.items, part.way), start=1):
            if isinstance(found, Seen):
                samples.append(found)
            else:
                unusable.append(found)
            advance(done)
    return {"path": part.path, "reader": part.way.chosen.name, **summary(samples, unusable)}, samples


def _print(result: dict[str, Any]) -> None:
    for part in filter(None, (result, result.get("validation"))):
        _print_part(part)
    if "leaks" in result:
        lines = [f"{pair['training']} is {pair['validation']}" for pair in result["leaks"]]
        _print_list("in both", lines)


def _print_part(part: dict[str, Any]) -> None:
    what = "images" if part["reader"] == "images" else f"samples from {part['reader']}"
    ui.data(f"{part['path']}: {part['images']:,} {what}, {part['bytes'] / 1e6:,.1f} MB")
    if part["kinds"]:
        _print_kinds(part["kinds"])
        side, span = part["shorter_side"], part["range"]
        ui.data(f"shorter side: {side['min']} to {side['max']}, median {side['median']}")
        ends = "" if part["reader"] == "images" else ", which become -1 to 1"
        ui.data(f"range: {span['min']:.3g} to {span['max']:.3g} of 0 to 1{ends}")
        if part["clipped"]:
            ui.data(f"clipped: {part['clipped']:.2%} of all numbers")
    _print_list("of one value", part["constant"])
    _print_list("there twice", [" = ".join(group) for group in part["duplicates"]])
    _print_list("unusable", [f"{bad['name']} {bad['reason']}" for bad in part["unusable"]])


def _print_kinds(kinds: list[dict[str, Any]]) -> None:
    rates, spacings = (any(kind[key] for kind in kinds) for key in ("rate", "spacing"))
    columns = [ui.Column("format"), ui.Column("mode")]
    titles = ["bits", "channels", *["rate"] * rates, *["spacing"] * spacings, "files", "smallest", "largest", "numbers"]
    columns += [ui.Column(title, number=True) for title in titles]
    ui.table(columns, [_row(kind, rates=rates, spacings=spacings) for kind in kinds])


def _row(kind: dict[str, Any], *, rates: bool, spacings: bool) -> tuple[str, ...]:
    cells = [kind["format"], kind["mode"], str(kind["bits"]), str(kind["channels"])]
    cells += [f"{kind['rate']:,}" if kind["rate"] else "-"] * rates
    cells += ["x".join(f"{each:g}" for each in kind["spacing"]) if kind["spacing"] else "-"] * spacings
    cells += [f"{kind['images']:,}", *("x".join(map(str, kind[end])) for end in ("smallest", "largest"))]
    numbers = kind["numbers"]
    return (*cells, f"{numbers['min']:.4g} to {numbers['max']:.4g}")


def _print_list(title: str, lines: list[str]) -> None:
    ui.data(f"{title}: {len(lines):,}")
    for line in lines[:SHOWN]:
        ui.data(f"  {line}")
    if len(lines) > SHOWN:
        ui.data(f"  and {len(lines) - SHOWN:,} more; --json lists them")
