"""`flexvae data`: check."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flexvae_cli import ui
from flexvae_cli.commands.options import JsonOption
from flexvae_cli.errors import Exit

if TYPE_CHECKING:
    from flexvae_cli.engine.data.audit import Seen

app = typer.Typer(no_args_is_help=True, help="Check data sets.")
SHOWN = 20  # lines of each list; --json has all


class Range(Enum):
    """Which numbers are black and white where a file does not say."""

    TYPE = "type"
    FILE = "file"


@app.callback()
def data() -> None:
    """Check data sets."""


@app.command()
def check(
    path: Annotated[str, typer.Argument(metavar="PATH", help="A folder of images, or `builtin:scenery`.")],
    validation: Annotated[
        str | None,
        typer.Option("--validation", metavar="PATH", help="Images that must not be among them.", show_default=False),
    ] = None,
    channels: Annotated[
        int, typer.Option("--channels", min=1, help="Of a sample: 1 (grey) to 4 (RGB, alpha), or those of a PAM.")
    ] = 3,
    min_size: Annotated[int, typer.Option("--min-size", min=1, help="Least shorter side of an image.")] = 1,
    max_pixels: Annotated[int, typer.Option("--max-pixels", min=1, help="Most pixels of an image.")] = 64_000_000,
    span: Annotated[
        Range, typer.Option("--range", help="Of floats and 32-bit numbers: from 0 to 1, or of each file.")
    ] = Range.TYPE,
    low: Annotated[float | None, typer.Option("--low", help="Their least number, instead.", show_default=False)] = None,
    high: Annotated[float | None, typer.Option("--high", help="Their greatest.", show_default=False)] = None,
    as_json: JsonOption = False,
) -> None:
    """Decode every image of a folder and say what is in it.

    Tells formats, modes, sizes and ranges, images of a single value, images that are there twice (whose pixels are the
    same, whatever the file), files that cannot be used and why, and images that are in --validation as well. Exit code
    3 where a file cannot be used, or is in both.
    """
    from flexvae_cli.engine.data.audit import leaks, summary
    from flexvae_cli.engine.data.readers.span import Span
    from flexvae_cli.errors import UsageError

    try:
        stated = Span(span.value, low, high)
    except ValueError as error:
        raise UsageError(str(error), where="--range, --low, --high") from error
    options = {"channels": channels, "min_size": min_size, "max_pixels": max_pixels, "span": stated}
    images, told = _looked(path, "PATH", options, summary)
    result: dict[str, Any] = {"path": path, **told}
    wrong = bool(told["unusable"])
    if validation is not None:
        held_out, there = _looked(validation, "--validation", options, summary)
        pairs = leaks(images, held_out)
        result["validation"] = {"path": validation, **there}
        result["leaks"] = [{"training": one, "validation": other} for one, other in pairs]
        wrong = wrong or bool(there["unusable"]) or bool(pairs)
    if as_json:
        ui.json(result)
    else:
        _print(result)
    if wrong:
        raise typer.Exit(Exit.DATA)


def _looked(path: str, where: str, options: dict[str, Any], summary: Any) -> tuple[list[Seen], dict[str, Any]]:
    """The images that can be used, and what is to be said of all."""
    from flexvae_cli.engine.data.audit import Seen, Unusable, look_through
    from flexvae_cli.engine.data.sources import list_images

    items = list_images(path, where=where)
    images: list[Seen] = []
    unusable: list[Unusable] = []
    with ui.progress(len(items), "images") as advance:
        for done, found in enumerate(look_through(items, **options), start=1):
            if isinstance(found, Seen):
                images.append(found)
            else:
                unusable.append(found)
            advance(done)
    return images, summary(images, unusable)


def _print(result: dict[str, Any]) -> None:
    for part in (result, result.get("validation")):
        if part is not None:
            _print_part(part)
    if "leaks" in result:
        lines = [f"{pair['training']} is {pair['validation']}" for pair in result["leaks"]]
        _print_list("in both", lines)


def _print_part(part: dict[str, Any]) -> None:
    ui.data(f"{part['path']}: {part['images']:,} images, {part['bytes'] / 1e6:,.1f} MB")
    columns = [ui.Column("format"), ui.Column("mode")]
    columns += [ui.Column(title, number=True) for title in ("bits", "images", "smallest", "largest")]
    rows = [
        (kind["format"], kind["mode"], str(kind["bits"]), f"{kind['images']:,}", *map(_size, _ends(kind)))
        for kind in part["kinds"]
    ]
    if rows:
        ui.table(columns, rows)
        side, span = part["shorter_side"], part["range"]
        ui.data(f"shorter side: {side['min']} to {side['max']}, median {side['median']}")
        ui.data(f"range: {span['min']:.3g} to {span['max']:.3g} of 0 to 1")
    _print_list("of one value", part["constant"])
    _print_list("there twice", [" = ".join(group) for group in part["duplicates"]])
    _print_list("unusable", [f"{bad['name']} {bad['reason']}" for bad in part["unusable"]])


def _ends(kind: dict[str, Any]) -> tuple[list[int], list[int]]:
    return kind["smallest"], kind["largest"]


def _size(size: list[int]) -> str:
    return "x".join(map(str, size))


def _print_list(title: str, lines: list[str]) -> None:
    ui.data(f"{title}: {len(lines):,}")
    for line in lines[:SHOWN]:
        ui.data(f"  {line}")
    if len(lines) > SHOWN:
        ui.data(f"  and {len(lines) - SHOWN:,} more; --json lists them")
