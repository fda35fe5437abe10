"""The reference of every table and key of a config, for `docs/config.md`: `python -m flexvae_cli.config.reference`."""

from __future__ import annotations

import inspect
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from flexvae_cli.config.layers import MAX_CHAIN
from flexvae_cli.config.settings import LossChanges, RelativePath, Settings, parse_bytes, parse_shape, table_in
from flexvae_cli.config.toml_writer import to_toml
from flexvae_cli.errors import listed

HEAD = """# The config file

A config is a TOML file. `flexvae train --config FILE` reads it, and so does every command that takes
`--config`; without the option, a command reads `flexvae.toml` in the working directory. Nothing is guessed:
an unknown table or key is an error.

| command | what it does |
| --- | --- |
| `flexvae config new NAME` | writes a shipped config and its structure files into the working directory |
| `flexvae config new --list` | lists the shipped configs |
| `flexvae config check` | checks a config and the structure files it names |
| `flexvae config show` | prints the config with everything merged |
| `flexvae config explain-loss` | tells what the weights of the loss amount to |
| `flexvae config schema` | prints a JSON schema, for editors |

**Paths.** A path is relative to the file that it stands in, so a config and its structure files can be moved
together. A path given by `--set` is relative to the working directory. `~` is your home folder. A source that
begins with `builtin:`, such as `builtin:scenery`, ships with FlexVAE and is no path.

**One config can extend another.** `extends = "base.toml"`, above the first table, starts from the values of
`base.toml`. Tables are merged key by key; everything else, lists too, is replaced. A base can extend a base
of its own, up to {chain} files in all. Where a file, or `--set`, names another optimizer, what it makes no use of
(`betas`, `eps` or `momentum`) is not taken over; `max_steps` and `epochs` replace each other.

**`--set KEY=VALUE`** wins over the files, as in `--set optimizer.lr=1e-3 --set data.source=photos/`; it can
be given many times, and of the same key the last one counts. VALUE is read as TOML where it is TOML, else as
text; quote it twice to have a number taken as text: `--set 'data.source="2024"'`.

A key without a default must be given. This page is generated from `flexvae_cli/config/settings/`.
"""

COLUMNS = "| key | type | default | meaning |\n| --- | --- | --- | --- |"


def reference() -> str:
    """The whole page as Markdown."""
    return "\n".join([HEAD.format(chain=MAX_CHAIN), *_sections()])


def _sections() -> Iterator[str]:
    for name, field in Settings.model_fields.items():
        yield from _section(name, field)


def _section(name: str, field: FieldInfo) -> Iterator[str]:
    """A table, then the tables inside it."""
    table = table_in(field.annotation)
    if table is None:
        return
    many = get_origin(_plain(field.annotation)) is tuple
    inner = {key: f for key, f in table.model_fields.items() if table_in(f.annotation) and not _is_changes(f)}
    rows = "\n".join(_row(key, f) for key, f in table.model_fields.items() if key not in inner)
    named = get_origin(_plain(field.annotation)) is dict
    title = f"[[{name}]]" if many else f"[{name}.NAME]" if named else f"[{name}]"
    parts = [f"## {title}", inspect.cleandoc(table.__doc__ or ""), f"{COLUMNS}\n{rows}" if rows else ""]
    yield "\n\n".join(filter(None, parts)) + "\n"
    for key, f in inner.items():
        yield from _section(f"{name}.{key}", f)


def _plain(annotation: Any) -> Any:
    return annotation.__origin__ if get_origin(annotation) is Annotated else annotation


def _is_changes(field: FieldInfo) -> bool:
    return field.annotation is LossChanges


def _row(key: str, field: FieldInfo) -> str:
    cells = [f"`{key}`", kind(field.annotation, field.metadata), _default(field), field.description or ""]
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "must be given"
    default = list(field.default) if isinstance(field.default, tuple) else field.default
    if default is None or default == {} or isinstance(default, BaseModel):
        return ""
    return f"`{to_toml({'x': default}).removeprefix('x = ').strip()}`"


def kind(annotation: Any, metadata: Any = ()) -> str:
    """A type in words: `whole number, at least 1`."""
    origin, inner = get_origin(annotation), [a for a in get_args(annotation) if a is not type(None)]
    if origin is Annotated:
        return kind(annotation.__origin__, annotation.__metadata__)
    if origin in (Union, types.UnionType):
        return "; or ".join(kind(a, metadata) for a in inner)
    marks = [m for mark in metadata for m in (mark.metadata if isinstance(mark, FieldInfo) else [mark])]
    readers = [getattr(m, "func", None) for m in marks]
    if parse_shape in readers:
        return "channels x size"
    if parse_bytes in readers:
        return "bytes, or text such as `24GiB`"
    if any(isinstance(m, RelativePath) for m in marks) or annotation is Path:
        return "path"
    if origin is Literal:
        return listed(inner, "`")
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "table"
    if origin is tuple and inner[-1] is Ellipsis:
        return f"list of {kind(inner[0])}"
    if origin is tuple:
        return f"list of {len(inner)}: {kind(inner[0])}"
    if origin is dict:
        return "table of text"
    return ", ".join(
        [{int: "whole number", float: "number", bool: "true or false", str: "text"}[annotation], *_limits(marks)]
    )


def _limits(marks: list[Any]) -> Iterator[str]:
    words = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
    for mark in marks:
        for name, word in words.items():
            limit = getattr(mark, name, None)
            if limit is not None:
                yield f"{word} {re.sub('^9223372036854775808$', '2^63', str(limit))}"


if __name__ == "__main__":
    sys.stdout.write(reference())
