"""`flexvae compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from flexvae_cli import ui
from flexvae_cli.commands.options import JsonOption

RESULT_HELP = "What `flexvae eval --output` wrote: the .json file or the folder."


def compare(
    a: Annotated[Path, typer.Argument(metavar="A", help=RESULT_HELP)],
    b: Annotated[Path, typer.Argument(metavar="B", help=RESULT_HELP)],
    as_json: JsonOption = False,
) -> None:
    """Compare two models, image by image.

    Takes two results of `flexvae eval`, measured in the same way on the same images; otherwise all that differs is
    named. A model is called better where the 95 % interval of the mean difference excludes 0 and Wilcoxon's
    signed-rank test has p < 0.05.
    """
    from flexvae_cli.engine.evaluation.comparing import compare as compare_results
    from flexvae_cli.engine.evaluation.result import read_result

    result = compare_results(read_result(a), read_result(b), (str(a), str(b)))
    if as_json:
        ui.json(result)
    else:
        _print(result)


def _print(result: dict[str, Any]) -> None:
    from flexvae_cli.engine.evaluation.measures import MEASURES

    for side in ("a", "b"):
        ui.data(f"{side.upper()}: {result[side]['path']}, weights {result[side]['weights_hash'][:12]}")
    titles = ("A", "B", "B - A", "95 % interval", "wins A : B", "p")
    rows = []
    for measure in MEASURES:
        if (found := result["measures"].get(measure.key)) is not None:
            numbers = (found["mean_a"], found["mean_b"], found["difference"])
            cells = [_number(n, measure.digits, sign=n is numbers[2]) for n in numbers]
            interval = " to ".join(_number(n, measure.digits, sign=True) for n in found["interval"] or ()) or "-"
            wins = f"{found['wins_a']} : {found['wins_b']}"
            rows.append((measure.title, *cells, interval, wins, f"{found['p']:.2g}", _verdict(found)))
    if (rfid := result["rfid"]) is not None:
        cells = [f"{rfid['a']:.3f}", f"{rfid['b']:.3f}", f"{rfid['b'] - rfid['a']:+.3f}"]
        rows.append(("rFID", *cells, "-", "-", "-", "one number, no test"))
    optional = {"A": 2, "B": 2, "wins A : B": 1}  # left out on a narrow terminal
    columns = (ui.Column(title, number=True, optional=optional.get(title, 0)) for title in titles)
    ui.table([ui.Column(""), *columns, ui.Column("better")], rows)
    ui.say(f"{result['images']} images; B - A is the mean difference over them")


def _number(value: float | None, digits: int, *, sign: bool) -> str:
    return "-" if value is None else f"{value:{'+' if sign else ''}.{digits}f}"


def _verdict(found: dict[str, Any]) -> str:
    """`B (higher)`, or that the images do not tell."""
    return f"{found['better'].upper()} ({found['better_is']})" if found["better"] else "no clear difference"
