"""The numbers of a run as a table that spreadsheets and pandas open: `metrics.csv`."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flexvae_cli.api.events import Event, Logged, Started, Validated
from flexvae_cli.engine.files import replace_file, writing
from flexvae_cli.engine.lines import LineFile
from flexvae_cli.engine.report.files import metrics

Row = Mapping[str, Any]


class MetricsTable:
    """A row for each line of metrics.jsonl; a number that turns up late gets a column behind those that are there.

    Args:
        delimiter: between two cells.
    """

    def __init__(self, delimiter: str) -> None:
        self.delimiter = delimiter
        self.columns = ["step", "kind"]
        self.lines = LineFile(Path())

    def __call__(self, event: Event) -> None:
        if isinstance(event, Started):
            self._begin(event.run)
        elif isinstance(event, Logged | Validated):
            kind = "train" if isinstance(event, Logged) else "validation"
            self._add({"step": event.step, "kind": kind, **event.values})

    def _begin(self, run: Path) -> None:
        """Go on behind what metrics.jsonl has, cut back to where the run goes on: an older table may say otherwise."""
        self.lines, self.columns = LineFile(run / "metrics.csv"), ["step", "kind"]
        rows = [{"step": row.step, "kind": row.kind, **row.values} for row in metrics(run / "metrics.jsonl", [])]
        for row in rows:
            self.columns += [name for name in row if name not in self.columns]
        if rows or self.lines.path.exists():
            self._write(rows)

    def _add(self, row: Row) -> None:
        new = [name for name in row if name not in self.columns]
        if new or not self.lines.path.exists():
            self.lines.flush()
            rows = self._rows()
            self.columns += new
            self._write([*rows, row])
        else:
            self.lines.add(self._line([row.get(name, "") for name in self.columns]))

    def _rows(self) -> list[dict[str, str]]:
        """What the file has so far."""
        if not self.lines.path.exists():
            return []
        with self.lines.path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file, delimiter=self.delimiter))

    def _write(self, rows: Sequence[Row]) -> None:
        lines = [self._line(self.columns), *(self._line([row.get(name, "") for name in self.columns]) for row in rows)]
        data = "".join(f"{line}\n" for line in lines).encode()
        with writing(self.lines.path, len(data)):
            replace_file(self.lines.path, data)

    def _line(self, cells: list[Any]) -> str:
        text = io.StringIO()
        csv.writer(text, delimiter=self.delimiter, lineterminator="").writerow(cells)
        return text.getvalue()
