"""A structure as the text of a file."""

from __future__ import annotations

import json
from typing import Any

WIDTH = 116  # columns that an entry may reach to in one line


def structure_text(document: list[Any]) -> str:
    """A structure as a file holds it: an entry to a line, and what is too long for one broken where it has parts."""
    return "[\n" + ",\n".join(f"  {_entry_text(entry, 2)}" for entry in document) + "\n]\n"


def _entry_text(value: Any, indent: int) -> str:
    short = json.dumps(value)
    if indent + len(short) <= WIDTH or not isinstance(value, (dict, list)):
        return short
    inner, outer = " " * (indent + 2), " " * indent
    if isinstance(value, list):
        return "[\n" + ",\n".join(inner + _entry_text(each, indent + 2) for each in value) + f"\n{outer}]"
    parts = (f"{inner}{json.dumps(key)}: {_entry_text(each, indent + 2)}" for key, each in value.items())
    return "{\n" + ",\n".join(parts) + f"\n{outer}}}"
