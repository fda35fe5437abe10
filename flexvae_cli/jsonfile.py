"""JSON from untrusted files: bounded, UTF-8, no duplicate keys, no NaN, no deep nesting; errors come with a place."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

MOST_BYTES = 4 * 2**20
MOST_DEPTH = 64


class JSONError(ValueError):
    """The text is not the JSON that is wanted; `position` is `line:column` where it is known."""

    def __init__(self, message: str, position: str = "") -> None:
        super().__init__(message)
        self.position = position


def read_text(path: Path, most_bytes: int = MOST_BYTES) -> str:
    """The text of a small UTF-8 file; a byte-order mark is dropped.

    Raises:
        JSONError: the file is missing, no regular file, too large, or not UTF-8.
    """
    try:
        if path.is_dir():
            raise JSONError("is a folder, not a file")
        if not path.exists():
            raise JSONError("no such file")
        if not path.is_file():
            raise JSONError("is not a regular file")
        if path.stat().st_size > most_bytes:
            raise JSONError(f"is {path.stat().st_size:,} bytes large; the most is {most_bytes:,}")
        data = path.read_bytes()
    except OSError as error:
        raise JSONError(f"cannot be read: {error.strerror or error}") from None
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise JSONError("is UTF-16; save it as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        column = error.start - data.rfind(b"\n", 0, error.start)
        raise JSONError("is not UTF-8", f"{line}:{column}") from None


def parse_json(text: str) -> Any:
    """The value that `text` holds.

    Raises:
        JSONError: what is wrong, and where.
    """
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite)
    except json.JSONDecodeError as error:
        raise JSONError(f"is not JSON: {error.msg.lower()}", f"{error.lineno}:{error.colno}") from None
    except RecursionError:
        raise JSONError(f"is nested deeper than {MOST_DEPTH} levels") from None
    except JSONError:
        raise
    except ValueError:  # Python refuses whole numbers of more than 4,300 digits
        raise JSONError("holds a number that is too long") from None
    if _deeper(value, MOST_DEPTH):
        raise JSONError(f"is nested deeper than {MOST_DEPTH} levels")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise JSONError(f"gives the key '{key[:64]}' twice")
        found[key] = value
    return found


def _no_constant(name: str) -> Any:
    raise JSONError(f"holds {name}, which is no number in JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise JSONError(f"holds {text[:64]}, which is too large a number")
    return number


def _deeper(value: Any, levels: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels < 0 or any(_deeper(item, levels - 1) for item in inner)
