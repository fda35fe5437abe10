"""The lines of a TOML text: tomli tells where a text is no TOML, this tells where each of its keys stands."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile

import tomli

KeyPath = tuple[str | int, ...]  # keys from the outside in; an int is the index into an array

TOKEN = re.compile(
    r'(?P<string>"""(?:\\.|[^\\])*?"{3,5}|' + r"'''.*?'{3,5}|" + r'"(?:\\.|[^"\\])*"|' + r"'[^']*')"
    r"|(?P<comment>\#[^\n]*)|(?P<newline>\n)|(?P<bare>[A-Za-z0-9_-]+)|(?P<mark>[][{}=.])",
    re.DOTALL,
)


def key_lines(text: str) -> dict[KeyPath, int]:
    """The line, counted from 1, of every table and key of a valid TOML text; keys of inline tables are left out."""
    lines: dict[KeyPath, int] = {}
    counts: dict[KeyPath, int] = {}  # how many elements an array of tables has so far
    table: KeyPath = ()
    for line, tokens in _statements(text):
        if tokens[0] != "[":
            path = table + _parts(tokens)
        elif tokens[1] != "[":
            path = table = _placed(_parts(tokens[1:]), counts)
        else:
            *parents, name = _parts(tokens[2:])
            array = (*_placed(parents, counts), name)
            counts[array] = counts.get(array, 0) + 1
            path = table = (*array, counts[array] - 1)
        for length in range(1, len(path)):
            lines.setdefault(path[:length], line)
        lines[path] = line
    return lines


def line_of(lines: Mapping[KeyPath, int], path: KeyPath) -> int | None:
    """The line of `path`, or of the nearest thing around it that has one."""
    around = (path[:length] for length in range(len(path), 0, -1))
    return next((lines[p] for p in around if p in lines), None)


def _statements(text: str) -> Iterator[tuple[int, list[str]]]:
    """First line and tokens of each header and each `key = value`, which may span lines."""
    line, first, depth = 1, 1, 0
    tokens: list[str] = []
    for match in TOKEN.finditer(text):
        piece = match[0]
        if match.lastgroup == "newline":
            if tokens and not depth:
                yield first, tokens
                tokens = []
        elif match.lastgroup != "comment":
            first = first if tokens else line
            tokens.append(piece)
            depth += (piece in "[{") - (piece in "]}")
        line += piece.count("\n")
    if tokens:
        yield first, tokens


def _parts(tokens: Sequence[str]) -> KeyPath:
    """The keys that the tokens begin with, up to `=` or `]`."""
    return tuple(_unquoted(t) for t in takewhile(lambda t: t not in ("=", "]"), tokens) if t != ".")


def _unquoted(token: str) -> str:
    return next(iter(tomli.loads(f"{token} = 0"))) if token[0] in "\"'" else token


def _placed(parts: Sequence[str | int], counts: Mapping[KeyPath, int]) -> KeyPath:
    """The path of a header: a name that is an array of tables stands for the newest of its elements."""
    path: KeyPath = ()
    for part in parts:
        path = (*path, part)
        if path in counts:
            path = (*path, counts[path] - 1)
    return path
