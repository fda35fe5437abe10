"""Where the values of a config come from: TOML files that extend each other, and `--set` on the command line."""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import tomli

from flexvae_cli.config.locate import KeyPath, key_lines, line_of
from flexvae_cli.config.problems import dotted
from flexvae_cli.errors import Problem, UsageError

MAX_BYTES = 1_000_000  # a config is a page of text
MAX_DEPTH = 64  # tables and lists within each other
MAX_CHAIN = 16  # files that extend each other


@dataclass(frozen=True)
class Layer:
    """The values of one file, or of one `--set`.

    Attributes:
        name: how errors call it: the file, or `--set KEY`.
        folder: what its relative paths are relative to.
        values: nested tables.
        text: the TOML text, empty for `--set`.
    """

    name: str
    folder: Path
    values: dict[str, Any]
    text: str = ""

    @cached_property
    def lines(self) -> dict[KeyPath, int]:
        return key_lines(self.text)

    def where(self, path: KeyPath) -> str:
        """`file:line` of a key, or the name alone where it has no line."""
        line = line_of(self.lines, path)
        return f"{self.name}:{line}" if line else self.name

    def has(self, path: KeyPath) -> bool:
        value: Any = self.values
        for part in path:
            inside = part in value if isinstance(value, dict) else isinstance(value, list) and part in range(len(value))
            if not inside:
                return False
            value = value[part]
        return True


def read_files(path: Path) -> list[Layer]:
    """A config file and all that it extends, the innermost base first.

    Raises:
        UsageError: a file cannot be read or is no TOML, or the chain goes in a circle or is too long.
    """
    layers = [read_file(path, str(path))]
    chain = [path]
    while "extends" in layers[0].values:
        base = layers[0].values.pop("extends")
        where = layers[0].where(("extends",))
        if not isinstance(base, str) or not base or "\0" in base:
            raise UsageError("extends wants the path of a config file, as in extends = 'base.toml'", where=where)
        chain.append(chain[-1].parent / user_expanded(base))
        shown_chain = " -> ".join(str(p) for p in chain)
        if os.path.realpath(chain[-1]) in [os.path.realpath(p) for p in chain[:-1]]:
            raise UsageError(f"extends goes in a circle: {shown_chain}", where=where)
        if len(chain) > MAX_CHAIN:
            raise UsageError(f"extends goes through more than {MAX_CHAIN} files: {shown_chain}", where=where)
        layers.insert(0, read_file(chain[-1], f"{where}: extends {chain[-1]}"))
    return layers


def read_file(path: Path, asked_as: str) -> Layer:
    """One TOML file.

    Args:
        path: the file.
        asked_as: where errors say that a file is missing: the file itself, or the line that extends it.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except IsADirectoryError:
        raise UsageError("is a directory; give a TOML file", where=asked_as) from None
    except FileNotFoundError:
        raise UsageError("does not exist", where=asked_as) from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no file can be called that"
        raise UsageError(f"cannot be read: {reason}", where=asked_as) from None
    text = _decoded(data, str(path))
    values = _parsed(text, str(path))
    layer = Layer(str(path), Path(os.path.realpath(path.parent)), values, text)
    refuse_outsized(layer)
    return layer


def _decoded(data: bytes, name: str) -> str:
    """The text of a file, its line ends made `\\n`; UTF-8 with or without a byte order mark, and nothing else."""
    if len(data) > MAX_BYTES:
        raise UsageError(f"is larger than {MAX_BYTES:,} bytes; a config is a page of text", where=name)
    if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) or data[:2].count(0) == 1:
        raise UsageError("is UTF-16; save it as UTF-8", where=name)
    try:
        text = data.removeprefix(codecs.BOM_UTF8).decode().replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UsageError(
            f"is not UTF-8 (byte 0x{data[error.start]:02x}); save it as UTF-8", where=f"{name}:{line}"
        ) from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise UsageError("has a NUL byte; this is no text file", where=f"{name}:{line}")
    return text


def _parsed(text: str, name: str) -> dict[str, Any]:
    """The values of a TOML text."""
    try:
        return tomli.loads(text)
    except tomli.TOMLDecodeError as error:
        line = text.split("\n")[error.lineno - 1]
        raise UsageError(
            Problem(
                _toml_message(error.msg),
                where=f"{name}:{error.lineno}:{error.colno}",
                text=line,
                span=(error.colno - 1, error.colno) if line else None,
            )
        ) from None
    except RecursionError:
        raise UsageError(f"tables and lists are nested more than {MAX_DEPTH} deep", where=name) from None
    except ValueError:  # Python reads no number of more than 4,300 digits
        digits = re.search(r"[0-9_]{4300,}", text)
        line_number = text.count("\n", 0, digits.start() if digits else 0) + 1
        raise UsageError("a number has thousands of digits", where=f"{name}:{line_number}") from None


def _toml_message(message: str) -> str:
    """tomli's message in our style; it shows tables as Python tuples."""
    if re.match(r"Cannot declare", message):
        return "this table is given twice"
    if re.match(r"Cannot (overwrite|mutate|redefine)|Duplicate", message):
        return "this key is given twice"
    return f"{message[:1].lower()}{message[1:]}"


def read_overrides(overrides: Sequence[str]) -> list[Layer]:
    """A layer for each `KEY=VALUE`; VALUE is a TOML value where it is one, else a bare string.

    Raises:
        UsageError: with every override that cannot be read.
    """
    layers: list[Layer] = []
    wrong: list[Problem] = []
    for override in overrides:
        try:
            layers.append(_override(override))
        except UsageError as error:
            wrong += error.problems
    if wrong:
        raise UsageError(*wrong)
    return layers


def _override(override: str) -> Layer:
    key, equals, text = override.partition("=")
    name = f"--set {key.strip()}".encode(errors="replace").decode()
    try:
        override.encode()
        parts = list(_only_keys(tomli.loads(f"{key} = 0")))
    except (ValueError, RecursionError):
        parts = []
    if not equals or not parts:
        raise UsageError("wants KEY=VALUE, as in --set optimizer.lr=1e-3", where=name)
    if parts == ["extends"]:
        raise UsageError("extends belongs into a config file", where=name)
    value = _toml_value(text.strip())
    for part in reversed(parts):
        value = {part: value}
    layer = Layer(name, Path.cwd(), value)
    refuse_outsized(layer)
    return layer


def _only_keys(values: object) -> list[str]:
    """The keys of tables that have one key each, from the outside in; none where a table has more."""
    keys: list[str] = []
    while isinstance(values, dict):
        if len(values) != 1:
            return []
        key, values = next(iter(values.items()))
        keys.append(key)
    return keys


def _toml_value(text: str) -> Any:
    """`1e-3` -> 0.001, `[1, 2]` -> a list, `photos/` -> text. Dates stay text: no setting is a date."""
    try:
        values = tomli.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    plain = len(values) == 1 and isinstance(values["value"], str | int | float | list | dict)
    return values["value"] if plain else text


def refuse_outsized(layer: Layer) -> None:
    """Refuses what later steps cannot take: deep nesting, and numbers that TOML does not promise to hold."""
    stack: list[tuple[KeyPath, Any]] = [((), layer.values)]
    wrong: list[Problem] = []
    while stack:
        path, value = stack.pop()
        if len(path) > MAX_DEPTH:
            raise UsageError(f"{dotted(path[:2])} is nested more than {MAX_DEPTH} deep", where=layer.where(path))
        if isinstance(value, dict):
            stack += [((*path, key), inner) for key, inner in reversed(value.items())]
        elif isinstance(value, list):
            stack += [((*path, index), value[index]) for index in reversed(range(len(value)))]
        elif isinstance(value, int) and not -(2**63) <= value < 2**63:
            wrong.append(Problem(f"{dotted(path)} is a number of more than 64 bits", where=layer.where(path)))
    if wrong:
        raise UsageError(*wrong)


def user_expanded(path: str) -> Path:
    """`~/photos` in full; `~name` stays as it is where nobody is called `name`."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)
