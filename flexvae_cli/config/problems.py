"""What pydantic finds wrong with a config, in our words: the key first, one problem per key."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import date, time
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import BaseModel

from flexvae_cli.config.locate import KeyPath
from flexvae_cli.config.settings import Settings, table_in
from flexvae_cli.errors import Problem, did_you_mean, listed, nearest

if TYPE_CHECKING:
    from pydantic import ValidationError
    from pydantic_core import ErrorDetails

WANTED = {  # pydantic's name of a type error -> what the key wants
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "path_type": "a path",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a table",
    "model_type": "a table",
}
LIMITS = {  # pydantic's name of a range error -> how we say it, and where its context keeps the limit
    "greater_than": ("greater than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
}
LONGEST_SHOWN = 40  # characters of a wrong value that a message repeats


class Where(Protocol):
    """Tells the `file:line` or `--set KEY` that a key got its value from; `missing` asks for the file that lacks it."""

    def __call__(self, key: KeyPath, missing: bool = False) -> str: ...


def problems(
    error: ValidationError, document: Mapping[str, Any], where: Where, more: Sequence[Problem] = ()
) -> list[Problem]:
    """One problem for each key that is unknown, missing or has a wrong value, in the order of the lines.

    Args:
        error: what `Settings.model_validate(document)` raised.
        document: the config as a nested mapping.
        where: maps a key path to the place that errors name.
        more: problems that are known already.
    """
    found = [*more]
    by_key: dict[KeyPath, list[ErrorDetails]] = {}  # a union has an error for each of its branches
    for detail in error.errors(include_url=False):
        path, rest = _split(detail["loc"], document)
        if detail["type"] == "extra_forbidden":
            found.append(_unknown(path, detail["input"], where(path)))
        elif detail["type"] == "missing" and isinstance(rest[-1], str):
            found += _missing((*path, *rest), where(path, missing=True))
        else:
            by_key.setdefault(path, []).append(detail)
    found += [_wrong(path, details, document, where(path)) for path, details in by_key.items()]
    return sorted(found, key=_place)


def unknown_in_data(document: Mapping[str, Any], where: Where) -> list[Problem]:
    """The keys of `[data]` that are no settings, where no reader is named whose parameters they could be."""
    table = document.get("data")
    if not isinstance(table, dict) or "reader" in table:
        return []
    keys = [key for key in table if key not in _table_at(("data",)).model_fields]
    return [_unknown(("data", key), table[key], where(("data", key))) for key in keys]


def _place(problem: Problem) -> tuple[bool, str, int]:
    """Sorts by file and line, what `--set` brought last."""
    name, _, line = problem.where.rpartition(":")
    return problem.where.startswith("--set"), *((name, int(line)) if line.isdecimal() and name else (problem.where, 0))


def dotted(path: KeyPath) -> str:
    """`("optimizer", "betas", 0)` -> `optimizer.betas[0]`; keys that TOML would quote are quoted."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            bare = re.fullmatch(r"[A-Za-z0-9_-]+", part)
            text += ("." if text else "") + (part if bare else _cut(json.dumps(part)))
    return text


def shown(value: object) -> str:
    """A wrong value as a message repeats it: `the text '8'`, `true`, `3`, `a list`."""
    if isinstance(value, str):
        return f"the text {_cut(repr(value))}"
    if isinstance(value, bool | int | float):
        return _cut(json.dumps(value).lower() if isinstance(value, bool) else str(value))
    kinds = {dict: "a table", list: "a list", date: "a date", time: "a time"}
    return next((name for kind, name in kinds.items() if isinstance(value, kind)), "a value of another kind")


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


def _split(location: tuple[int | str, ...], document: Mapping[str, Any]) -> tuple[KeyPath, KeyPath]:
    """A pydantic location as the part that the document has, and the rest: a missing key, or branches of a union."""
    value: Any = document
    for depth, part in enumerate(location):
        inside = part in value if isinstance(value, dict) else isinstance(value, list) and part in range(len(value))
        if not inside:
            return location[:depth], location[depth:]
        value = value[part]
    return location, ()


def _table_at(path: KeyPath) -> type[BaseModel]:
    """The class of a table; `Settings` itself for what is no table."""
    table: type[BaseModel] = Settings
    for part in path:
        if isinstance(part, str) and part in table.model_fields:
            table = table_in(table.model_fields[part].annotation) or Settings
    return table


def _missing(path: KeyPath, where: str) -> list[Problem]:
    """A missing key, or all the keys that a missing table must have."""
    *table, name = path
    field = _table_at(tuple(table)).model_fields[str(name)]
    inner = table_in(field.annotation)
    if inner is None:
        return [Problem(f"[{dotted(tuple(table))}] needs {name} ({field.description})", where=where)]
    needed = [key for key, f in inner.model_fields.items() if f.is_required()]
    return [problem for key in needed for problem in _missing((*path, key), where)]


def _unknown(path: KeyPath, value: object, where: str) -> Problem:
    *table, last = path
    if not table:
        return _unknown_table(str(last), value, where)
    name, key = dotted(tuple(table)), str(last)
    known = _table_at(tuple(table)).model_fields
    meant = [f"{name}.{k}" for k in nearest(key, known)]
    ends = f"; did you mean {listed(meant, '')}?" if meant else ""
    hint = "" if ends or _elsewhere(key) else f"[{name}] has {listed(list(known), '', 'and')}"
    return Problem(f"{dotted(path)} is not a setting of [{name}]{_elsewhere(key)}{ends}", where=where, hint=hint)


def _unknown_table(name: str, value: object, where: str) -> Problem:
    tables = list(Settings.model_fields)
    hint = f"the tables are {listed([f'[{t}]' for t in tables], '', 'and')}"
    if isinstance(value, dict | list):
        meant = [f"[{t}]" for t in nearest(name, tables)]
        ends = f"; did you mean {listed(meant, '')}?" if meant else ""
        return Problem(f"[{dotted((name,))}] is not a table of a config{ends}", where=where, hint="" if ends else hint)
    elsewhere = _elsewhere(name)
    return Problem(
        f"{dotted((name,))} stands outside the tables{elsewhere}", where=where, hint="" if elsewhere else hint
    )


def _elsewhere(key: str) -> str:
    """`; lr is a setting of [optimizer]`, or nothing where no table has the key."""
    tables = [f"[{t}]" for t in Settings.model_fields if key in _table_at((t,)).model_fields]
    return f"; {key} is a setting of {listed(tables, '', 'and')}" if tables else ""


def _wrong(path: KeyPath, details: list[ErrorDetails], document: Mapping[str, Any], where: str) -> Problem:
    """A wrong value. Of a union's branches the one counts whose type was right."""
    detail = next((d for d in details if d["type"] not in WANTED), details[0])
    kind, context, value = detail["type"], detail.get("ctx", {}), detail["input"]
    items = [part for part in _split(detail["loc"], document)[1] if isinstance(part, int)]
    name = dotted((*path, *items))
    if kind == "value_error":
        in_table = isinstance(value, dict)
        what = f"[{name}] {context['error']}" if in_table else f"{name} {context['error']}, not {shown(value)}"
    elif kind in LIMITS:
        phrase, key = LIMITS[kind]
        what = f"{name} must be {phrase} {context[key]:.17g}, and is {shown(value)}"
    elif kind == "finite_number":
        what = f"{name} must be a finite number, and is {shown(value)}"
    elif kind == "literal_error":
        choices = re.findall(r"'([^']*)'", context["expected"])
        meant = did_you_mean(value, choices) if isinstance(value, str) else ""
        what = f"{name} wants {listed(choices)}, not {shown(value)}{meant}"
    elif kind == "string_pattern_mismatch":
        examples = _table_at(path[:-1]).model_fields[str(path[-1])].examples or []
        what = f"{name} cannot be {shown(value)}; write it as in {listed(examples)}"
    elif kind in ("missing", "too_short", "too_long"):
        what = f"{dotted(path)} has too {'many' if kind == 'too_long' else 'few'} values"
    else:
        wanted = dict.fromkeys(WANTED.get(d["type"], "another kind of value") for d in details)
        what = f"{name} wants {listed(list(wanted), '')}, not {shown(value)}"
    return Problem(what, where=where)
