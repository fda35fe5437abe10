"""Writes TOML; tomli only reads it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any


def to_toml(values: Mapping[str, Any]) -> str:
    """The TOML text of nested tables of text, numbers, truth values and lists; tables in lists are written inline."""
    return "\n".join(_lines(values, ())).strip("\n") + "\n" if values else ""


def _lines(values: Mapping[str, Any], table: tuple[str, ...]) -> Iterator[str]:
    tables = {key: value for key, value in values.items() if isinstance(value, dict)}
    if table and (len(tables) < len(values) or not values):
        yield f"\n[{'.'.join(map(_key, table))}]"
    for key, value in values.items():
        if key not in tables:
            yield f"{_key(key)} = {_value(value)}"
    for key, inner in tables.items():
        yield from _lines(inner, (*table, key))


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _text(key)


def _text(text: str) -> str:
    """A string as JSON writes it, which TOML reads too; what a terminal would hide or obey is escaped."""
    return "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in json.dumps(text, ensure_ascii=False))


def _value(value: object) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_key(k)} = {_value(v)}" for k, v in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        return _text(value)
    raise TypeError(f"TOML has no {type(value).__name__}")
