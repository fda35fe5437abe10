"""Processes that train together have to have the same in mind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flexvae_cli.engine.distributed import World
from flexvae_cli.errors import UsageError


def require_agreement(world: World, what: dict[str, Any]) -> None:
    """Refuse processes that would not train the same model on the same images.

    Args:
        what: JSON values that have to be the same everywhere, by the name that a message calls them.

    Raises:
        UsageError: what is not the same, and where.
    """
    each = world.from_each(what)
    differing: dict[str, list[int]] = {}
    for rank, theirs in enumerate(each):
        for name in what:
            if theirs.get(name) != each[0].get(name):
                differing.setdefault(name, []).append(rank)
    if differing:
        raise UsageError(*(_disagreement(name, ranks) for name, ranks in differing.items()))


def _disagreement(name: str, ranks: Sequence[int]) -> str:
    of = ", ".join(map(str, ranks))
    return f"the processes of this run do not agree on {name}: rank {of} differs from rank 0"
