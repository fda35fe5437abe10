"""Reads a factory's docstring: the summary, what each parameter means, and the examples that `check_layer` runs."""

from __future__ import annotations

import re
from dataclasses import dataclass

EXAMPLE = re.compile(r"(\S+): *([0-9]+(?:x[0-9]+)+) *-> *([0-9]+(?:x[0-9]+)+)", re.ASCII)


@dataclass(frozen=True, slots=True)
class Example:
    """A code, a shape that goes in and the shape that comes out, both (channels, *space)."""

    code: str
    takes: tuple[int, ...]
    gives: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Docstring:
    summary: str
    details: str
    params: dict[str, str]
    examples: tuple[Example, ...]
    unread: tuple[str, ...] = ()  # lines among the examples that are none


def parse_docstring(text: str) -> Docstring:
    """A Google-style docstring: summary line, details, `Args:`, and `Examples:` of the form `CODE: 3x8x8 -> 4x8x8`."""
    sections: dict[str, list[str]] = {"": []}
    current = ""
    for line in text.splitlines():
        if re.fullmatch(r"[A-Z][A-Za-z]+:", line):
            current = line[:-1]
            sections[current] = []
        else:
            sections[current].append(line)
    summary, _, rest = "\n".join(sections[""]).strip().partition("\n")
    examples, unread = _examples(sections.get("Examples", []) + sections.get("Example", []))
    return Docstring(summary.strip(), rest.strip(), _params(sections.get("Args", [])), examples, unread)


def _params(lines: list[str]) -> dict[str, str]:
    """`name: text`, continued on lines that are indented further."""
    found: dict[str, str] = {}
    name = ""
    for line in lines:
        if match := re.fullmatch(r" {4}(\w+): *(.*)", line):
            name = match[1]
            found[name] = match[2]
        elif name and line.strip():
            found[name] += " " + line.strip()
    return found


def _examples(lines: list[str]) -> tuple[tuple[Example, ...], tuple[str, ...]]:
    """The examples, and the lines that do not read as one."""
    matches = {line.strip(): EXAMPLE.fullmatch(line.strip()) for line in lines if line.strip()}
    examples = tuple(Example(m[1], _shape(m[2]), _shape(m[3])) for m in matches.values() if m)
    return examples, tuple(line for line, match in matches.items() if not match)


def _shape(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in text.split("x"))
