"""The one place that prints. stdout is data, stderr is talk; rich is imported when something is drawn with it."""

from __future__ import annotations

import json as json_module
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from flexvae_cli.errors import FlexVAEError

if TYPE_CHECKING:
    from rich.console import Console


@dataclass
class Output:
    """What the command line asked for, set once by `main`, and the progress bar that is being drawn, if any."""

    quiet: bool = False
    bar: Any = None


output = Output()


def say(text: str) -> None:
    """A line of talk on stderr, above the progress bar; `--quiet` silences it."""
    if output.bar is not None:
        output.bar.console.print(_safe(text), soft_wrap=True)
    elif not output.quiet:
        _write(sys.stderr, text + "\n")


def warn(text: str) -> None:
    """A warning on stderr, quiet or not."""
    _write(sys.stderr, f"warning: {text}\n")


def data(text: str) -> None:
    """A result on stdout."""
    _write(sys.stdout, text if text.endswith("\n") else text + "\n")


def json(value: Any) -> None:
    """A result on stdout, as JSON."""
    data(json_module.dumps(value, indent=2, allow_nan=False, default=str))


def emit(rows: Sequence[Mapping[str, Any]], *, as_json: bool = False) -> None:
    """What a plugin's command found, on stdout: a table with a column for each key, or a list of objects as JSON."""
    if as_json:
        json([dict(row) for row in rows])
        return
    names = list(dict.fromkeys(name for row in rows for name in row))
    numbers = {name: all(isinstance(row.get(name, 0), int | float) for row in rows) for name in names}
    cells = [[str(row.get(name, "")) for name in names] for row in rows]
    table([Column(name, number=numbers[name]) for name in names], cells)


def error(problem: FlexVAEError) -> None:
    """All problems of an error on stderr."""
    for each in problem.problems:
        lines = str(each).splitlines() or [""]
        body = "".join(f"\n  {line}" if not line.startswith("  ") else f"\n{line}" for line in lines[1:])
        _write(sys.stderr, f"error: {lines[0]}{body}\n")


def _write(stream: Any, text: str) -> None:
    """Write, with an escape for what the terminal's encoding lacks."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    stream.write(_safe(text).encode(encoding, "backslashreplace").decode(encoding))
    stream.flush()


def _safe(text: str) -> str:
    """The text without control characters, which could steer the terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    Attributes:
        number: aligned right.
        shrink: cells may be cut on a narrow terminal.
        wrap: cells may go on in the next line on a narrow terminal.
        optional: left out where the terminal is too narrow for the whole table: 1 goes first, 0 stays.
    """

    title: str
    number: bool = False
    shrink: bool = False
    wrap: bool = False
    optional: int = 0


Cells = Sequence[str]
GAP = 2  # blank columns of the terminal between two columns of a table
SPEED_PERIOD = 300.0  # seconds that the time left is reckoned from; steps may take many
ROOMY = 24  # what a column that can shrink or wrap is given before others are left out


def table(columns: Sequence[Column], rows: Sequence[Cells | None], title: str = "", total: Cells = ()) -> None:
    """A table on stdout: drawn by rich on a terminal and as wide as its content elsewhere.

    Args:
        columns: the columns, left to right.
        rows: plain text per column; None ends a section.
        title: a line above.
        total: the cells of a last row.
    """
    from rich.table import Table
    from rich.text import Text

    drawn = Table(
        title=_cell(title) if title else None,
        title_justify="left",
        box=_box(),
        show_edge=False,
        pad_edge=False,
        collapse_padding=True,
        show_footer=bool(total),
    )
    filled = [row for row in (*rows, total) if row]
    kept = _fitting(columns, filled, _console(sys.stdout).width)
    for index in kept:
        drawn.add_column(
            Text(columns[index].title),
            footer=_cell(total[index] if total else ""),
            justify="right" if columns[index].number else "left",
            no_wrap=not (columns[index].shrink or columns[index].wrap),
        )
    for row in rows:
        if row is None:
            drawn.add_section()
        else:
            drawn.add_row(*(_cell(row[index], columns[index].wrap) for index in kept))
    show(drawn)


def _cell(text: str, wrap: bool = False) -> Any:
    from rich.text import Text

    return Text(_safe(text), no_wrap=not wrap, overflow="fold" if wrap else "ellipsis")


def _fitting(columns: Sequence[Column], rows: Sequence[Cells], width: int) -> list[int]:
    """The columns to draw: optional ones go, one after the other, until the rest fits."""
    from rich.cells import cell_len

    needed = []
    for index, column in enumerate(columns):
        widest = max(map(cell_len, (column.title, *(row[index] for row in rows))))
        needed.append(GAP + (min(widest, ROOMY) if column.shrink or column.wrap else widest))
    kept = list(range(len(columns)))
    for index in sorted((i for i in kept if columns[i].optional), key=lambda i: columns[i].optional):
        if sum(needed[i] for i in kept) - GAP > width:
            kept.remove(index)
    return kept


def show(renderable: Any) -> None:
    """Anything that rich draws, on stdout."""
    console = _console(sys.stdout)
    with console.capture() as drawn:
        console.print(renderable)
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    sys.stdout.write(
        drawn.get().encode(encoding, "replace").decode(encoding)
    )  # one character each keeps columns straight
    sys.stdout.flush()


def _box() -> Any:
    from rich import box

    encoding = (getattr(sys.stdout, "encoding", None) or "ascii").lower()
    return box.SIMPLE_HEAD if encoding.startswith("utf") else box.ASCII


def _console(stream: Any) -> Console:
    """rich on a stream: off a terminal lines are never folded; `COLUMNS` is honoured either way."""
    from rich.console import Console

    width = None if stream.isatty() or "COLUMNS" in os.environ else 400
    return Console(file=stream, width=width, markup=False, highlight=False, soft_wrap=False, emoji=False)


def _draw_nothing(done: int, text: str | None = None, total: int | None = None) -> None:
    """What `progress` yields where there is no terminal."""


@contextmanager
def progress(total: int, unit: Literal["steps", "images", "layers", "files"], done: int = 0) -> Iterator[Any]:
    """A progress bar, one line, on a terminal's stderr; elsewhere nothing is drawn.

    Yields `advance(done, text, total)`: a text stays until the next one and is cut where the terminal is too narrow; a
    total sets the clock back, so that what was done before does not count as speed.
    """
    if output.quiet or not sys.stderr.isatty():
        yield _draw_nothing
        return
    from rich.progress import BarColumn, Progress, Task, TextColumn, TimeRemainingColumn
    from rich.table import Column as Cell
    from rich.text import Text

    class Description(TextColumn):
        """The one column that gives way on a narrow terminal: cut, never folded into a second line."""

        def render(self, task: Task) -> Text:
            return Text(task.description, no_wrap=True, overflow="ellipsis")

    columns = (
        BarColumn(bar_width=16, table_column=Cell(no_wrap=True)),
        TextColumn("{task.completed}/{task.total} " + unit),
        TimeRemainingColumn(table_column=Cell(no_wrap=True)),
        TextColumn("left"),
        Description("", table_column=Cell(no_wrap=False)),
    )
    drawn = Progress(*columns, console=_console(sys.stderr), transient=True, speed_estimate_period=SPEED_PERIOD)
    with drawn as bar:
        task = bar.add_task("", total=total, completed=done)

        def advance(done: int, text: str | None = None, total: int | None = None) -> None:
            if total is not None:
                bar.reset(task, total=total, completed=done)
            bar.update(task, completed=done, description=None if text is None else _safe(text))

        output.bar = bar
        try:
            yield advance
        finally:
            output.bar = None
