"""Which layer of a new net was which layer of an old one: a diff of their expanded lists of codes.

The longest common subsequence of the layers' names, and among those the one whose parameters agree best. Counterparts
for other numbers of axes, `C2d` and `C3d`, count as one name. Residuals are matched with residuals, and inside alike.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from flexvae_cli.structure import Item, Leaf, Sum

NAME, PARAMETERS = 1000, 400  # what a match of names is worth, and of all parameters; a name outweighs any parameters
MOST_CELLS = 4_000_000  # of the table that the diff fills; beyond, only what is equal at both ends is matched


class Pair(NamedTuple):
    """A layer or a residual as it was and as it is; one side is None where it was dropped, or is new."""

    old: Item | None
    new: Item | None


def match(old: Sequence[Item], new: Sequence[Item]) -> Iterator[Pair]:
    """Every item of both lists once, in order; matched residuals are followed by what is in them."""
    front = _equal(old, new)
    back = _equal(old[front:][::-1], new[front:][::-1])
    yield from _both(old[:front], new[:front])
    yield from _middle(old[front : len(old) - back], new[front : len(new) - back])
    yield from _both(old[len(old) - back :], new[len(new) - back :])


def _equal(old: Sequence[Item], new: Sequence[Item]) -> int:
    """How many items are the same from the start."""
    pairs = zip(old, new, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if _codes(a) != _codes(b)), min(len(old), len(new)))


def _both(old: Sequence[Item], new: Sequence[Item]) -> Iterator[Pair]:
    for a, b in zip(old, new, strict=True):
        yield Pair(a, b)
        if isinstance(a, Sum) and isinstance(b, Sum):
            yield from match(a.body, b.body)
            yield from match(a.shortcut, b.shortcut)


def _middle(old: Sequence[Item], new: Sequence[Item]) -> Iterator[Pair]:
    """The longest common subsequence by dynamic programming: `best[i][j]` is what old[i:] and new[j:] are worth."""
    if len(old) * len(new) > MOST_CELLS:
        old_rest, new_rest = list(old), list(new)
        yield from (Pair(item, None) for item in old_rest)
        yield from (Pair(None, item) for item in new_rest)
        return
    best = [[0] * (len(new) + 1) for _ in range(len(old) + 1)]
    worth = [[_worth(a, b) for b in new] for a in old]
    for i in reversed(range(len(old))):
        for j in reversed(range(len(new))):
            taken = worth[i][j] + best[i + 1][j + 1] if worth[i][j] else 0
            best[i][j] = max(taken, best[i + 1][j], best[i][j + 1])
    i = j = 0
    while i < len(old) or j < len(new):
        if i < len(old) and j < len(new) and worth[i][j] and best[i][j] == worth[i][j] + best[i + 1][j + 1]:
            yield from _both(old[i : i + 1], new[j : j + 1])
            i, j = i + 1, j + 1
        elif j == len(new) or (i < len(old) and best[i][j] == best[i + 1][j]):
            yield Pair(old[i], None)
            i += 1
        else:
            yield Pair(None, new[j])
            j += 1


def _worth(old: Item, new: Item) -> int:
    """0 for what is never matched."""
    if isinstance(old, Sum) or isinstance(new, Sum):
        if not (isinstance(old, Sum) and isinstance(new, Sum)):
            return 0
        a, b = _codes(old), _codes(new)
        alike = sum(one == other for one, other in zip(a, b, strict=False))
        return NAME + PARAMETERS * alike // max(len(a), len(b))
    if _family(old) != _family(new):
        return 0
    before, after = old.bound.values, new.bound.values
    alike = sum(before.get(name) == value for name, value in after.items())
    return NAME + (PARAMETERS * alike // len(after) if after else PARAMETERS)


def _family(leaf: Leaf) -> str:
    """`C2d` and `C3d` are of one family, and so are `RB` and `RB3d`."""
    return re.sub(r"[123]d$", "", leaf.bound.spec.name)


def _codes(item: Item) -> list[str]:
    """The codes of a layer or of all that is in a residual, with marks for where its paths begin and end."""
    if isinstance(item, Leaf):
        return [item.bound.code]
    inside = [code for part in item.body for code in _codes(part)]
    beside = [code for part in item.shortcut for code in _codes(part)]
    return ["(", *inside, "|", *beside, ")"]
