"""The values of a config's table given to a spec's parameters, as `codes.bind` gives those of a code."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from flexvae_cli.api.spec import Param, Spec
from flexvae_cli.codes import MOST_CHARACTERS, Bound
from flexvae_cli.errors import Problem, did_you_mean, listed

LONGEST_SHOWN = 60  # characters of a wrong value that a message repeats


def bind_values(spec: Spec, values: Mapping[str, Any], where: str, problems: list[Problem]) -> Bound | None:
    """Bind plain values, as TOML knows them, by the parameters' Python names.

    Args:
        spec: what they are for.
        values: parameter name -> value.
        where: the table, as in `loss.term[0]`.
        problems: what does not fit is added to them.
    """
    before = len(problems)
    bound: dict[str, Any] = {}
    for name, value in values.items():
        param = next((p for p in spec.params if p.name == name), None)
        if param is None:
            problems.append(_unknown(spec, name, f"{where}.{name[:LONGEST_SHOWN]}"))
            continue
        try:
            bound[name] = value_of(param, value)
        except ValueError as error:
            bound[name] = None
            problems.append(Problem(f"{spec.name} {error}", f"{where}.{name}"))
    missing = [p for p in spec.params if p.required and p.name not in bound]
    problems += [Problem(f"{spec.name} needs {p.name}: {p.help or p.wants}", where) for p in missing]
    if len(problems) > before:
        return None
    return Bound(spec, MappingProxyType({p.name: bound.get(p.name, p.default) for p in spec.params}))


def _unknown(spec: Spec, name: str, where: str) -> Problem:
    known = [p.name for p in spec.params]
    if not known:
        return Problem(f"{spec.name} has no parameters", where)
    meant = did_you_mean(name, known, "")
    hint = "" if meant else f"{spec.name} has {listed(known, '', 'and')}"
    return Problem(f"{spec.name} has no parameter of that name{meant}", where, hint=hint)


def value_of(param: Param, value: Any) -> Any:
    """A value of a table as the parameter takes it: a number for a number, a list for a list, nothing converted.

    Raises:
        ValueError: it has another type, or is out of range.
    """
    text = _text(param, value)
    if text is None:
        shown = repr(value)
        raise ValueError(f"wants {param.wants}, not {shown[:LONGEST_SHOWN]}{'...' * (len(shown) > LONGEST_SHOWN)}")
    return text if param.kind in ("file", "str") else param.parse(text)  # a table can hold what no code can


def _text(param: Param, value: Any) -> str | None:
    """The value as a code would have it, or None where its type is not the parameter's."""
    if isinstance(value, bool):
        return param.format(value) if param.kind in ("bool", "choice") else None
    if isinstance(value, str):
        fits = param.kind == "file" or (param.kind in ("str", "choice") and len(value) <= MOST_CHARACTERS)
        return value if fits else None
    if isinstance(value, int | float):
        number = param.kind in ("float", "choice") or (param.kind in ("int", "size") and isinstance(value, int))
        return param.format(value) if number else None
    if isinstance(value, list | tuple) and param.kind in ("size", "ints"):
        return param.format(tuple(value)) if value and all(type(n) is int for n in value) else None
    return None
