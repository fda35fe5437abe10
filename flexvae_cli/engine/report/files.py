"""The files of a run directory, read whatever state they were left in: torn, damaged, foreign, or missing."""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flexvae_cli.engine.reading import read_json
from flexvae_cli.errors import ModelError

MOST_BYTES = 1 << 28  # of a file that is read whole; a run of ten million steps stays below
LIMIT = 1 << 37  # no step has such a number; as seconds since 1970, four thousand years


@dataclass(frozen=True, slots=True)
class Row:
    """A line of metrics.jsonl.

    Attributes:
        step: the optimizer steps taken.
        kind: `train` or `validation`.
        time: seconds since 1970; None in runs of early releases.
        values: its numbers by name; NaN where there was none.
    """

    step: int
    kind: str
    time: float | None
    values: dict[str, float]


def metrics(path: Path, problems: list[str]) -> Iterator[Row]:
    """The lines of metrics.jsonl; the last may be torn, and what cannot be read is counted."""
    lines, lost = text(path, problems).split("\n"), 0
    for number, line in enumerate(lines, 1):
        found = _row(line)
        if found is not None:
            yield found
        elif number < len(lines):
            lost += 1
    if lost:
        problems.append(f"{path}: {lost} line{'s' * (lost > 1)} could not be read")


def _row(line: str) -> Row | None:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict):
        return None
    step, kind, time = (found.pop(key, None) for key in ("step", "kind", "time"))
    if type(step) is not int or not 0 <= step < LIMIT or kind not in ("train", "validation"):
        return None
    values = {name: _number(value) for name, value in found.items() if value is None or _is_number(value)}
    return Row(step, kind, float(time) if _is_number(time) and 0 < time < LIMIT else None, values)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(value: Any) -> float:
    try:
        return math.nan if value is None else float(value)
    except OverflowError:
        return math.inf


def bad_files(path: Path, problems: list[str]) -> Iterator[tuple[str, str]]:
    """(name, reason) of every line of bad_files.jsonl that can be read."""
    for line in text(path, problems).split("\n"):
        with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
            found = json.loads(line)
            yield str(found["name"]), str(found["reason"])


def skipped(path: Path) -> Iterator[tuple[int, tuple[str, ...]]]:
    """What every `nan-step-*.json` says: the step, counted from 1, and the images that it saw."""
    for file in sorted(path.glob("nan-step-*.json")):
        with contextlib.suppress(ModelError, KeyError, TypeError, ValueError):
            found = read_json(file)
            yield int(found["step"]) + 1, tuple(str(name) for batch in found["micro_batches"] for name in batch)


def previews(folder: Path) -> Iterator[tuple[int, Path]]:
    """(step, file) of every preview, oldest first."""
    for file in sorted(folder.glob("step-*.png")):
        match = re.fullmatch(r"step-([0-9]{8,18})\.png", file.name)
        if match and file.is_file():
            yield int(match[1]), file


def text(path: Path, problems: list[str]) -> str:
    """A file's text; nothing where there is none."""
    try:
        if not path.is_file():
            return ""
        with path.open("rb") as file:
            data = file.read(MOST_BYTES)
    except OSError as error:
        problems.append(f"{path}: cannot be read: {error.strerror or error}")
        return ""
    return data.decode("utf-8", "replace")
