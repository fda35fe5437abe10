"""The callbacks of a run, from `[callbacks.NAME]`: found by their names, their keys bound to their parameters."""

from __future__ import annotations

from collections.abc import Mapping

from flexvae_cli.codes import Bound
from flexvae_cli.config.settings import CallbackTable
from flexvae_cli.errors import Problem
from flexvae_cli.parameters import bind_values
from flexvae_cli.registry import Registered, Registry


def callbacks_of(tables: Mapping[str, CallbackTable], registry: Registry, problems: list[Problem]) -> tuple[Bound, ...]:
    """The callbacks in the order of their tables; what is wrong is added to `problems`."""
    bound = []
    for name, table in tables.items():
        where, found = f"callbacks.{name}", registry.find("callback", name)
        if isinstance(found, Registered):
            bound.append(bind_values(found.spec, table.model_extra or {}, where, problems))
        else:
            problems.append(Problem(found.what, where, hint=found.hint))
    return tuple(each for each in bound if each is not None)
