"""What operations give on tensors without memory, remembered: it follows from shapes, and nets have few of them.

Of the thousands of operations of a training step a tenth are different ones; layers repeat, and so do steps. What torch
needs to say what comes out of one, in Python for a good many, is then needed once.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

MOST = 1 << 15  # operations that are remembered, some hundred bytes each

Recipe = tuple[tuple[torch.Size, tuple[int, ...], torch.dtype] | None, ...]
"""Shape, strides and type of every output; None stands for one that is not made."""


class Remembered:
    """Runs operations on meta tensors; one that came before, on tensors of the same shapes, is not run again.

    Only what can be told from shapes is remembered: outputs of operations of torch's own that neither change nor pass
    on what they are given, and that fill the storages that they make.
    """

    def __init__(self) -> None:
        self._known: dict[Hashable, Recipe | None] = {}

    def __call__(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not _makes_its_own(func):
            return func(*args, **kwargs)
        try:
            key = (func, torch.get_default_dtype(), *map(_said_of, args), *kwargs, *map(_said_of, kwargs.values()))
            known = self._known.get(key, ())
        except (TypeError, _Unsaid):  # TypeError: something that cannot be looked up
            return func(*args, **kwargs)
        if known:
            made = [None if each is None else _made(*each) for each in known]
            return made[0] if len(made) == 1 else tuple(made)
        out = func(*args, **kwargs)
        if known is not None and len(self._known) < MOST:
            self._known[key] = _recipe(out, tree_leaves((args, kwargs)))
        return out


class _Unsaid(Exception):  # noqa: N818
    """There is more to an argument than can be looked up."""


def _said_of(value: Any) -> Hashable:
    """All of an argument that has a say in what comes out."""
    if isinstance(value, Tensor):
        # a single number may count as Python's own where types are chosen, and does not tell
        if not value.is_meta or value.layout is not torch.strided or not value.dim():
            raise _Unsaid
        return value.shape, value.stride(), value.dtype
    if isinstance(value, list | tuple):
        return type(value), *map(_said_of, value)
    return type(value), value  # 1, 1.0 and True are equal


@cache
def _makes_its_own(func: Any) -> bool:
    """Whether an operation is torch's, changes nothing, and gives nothing but new tensors."""
    schema = func._schema
    tensors = all(str(each.type) == "Tensor" for each in schema.returns)
    aliases = any(each.alias_info is not None for each in (*schema.arguments, *schema.returns))
    return func.namespace == "aten" and bool(schema.returns) and tensors and not aliases


def _recipe(out: Any, given: Iterable[Any]) -> Recipe | None:
    """How to make the like of what came out; None where that is not what a schema promises."""
    storages = {each.untyped_storage()._cdata for each in given if isinstance(each, Tensor)}
    recipe: list[tuple[torch.Size, tuple[int, ...], torch.dtype] | None] = []
    for each in out if isinstance(out, tuple) else (out,):
        if each is None:  # a gradient that nobody asked for
            recipe.append(None)
            continue
        how, storage = (each.shape, each.stride(), each.dtype), each.untyped_storage()
        if storage._cdata in storages or not each.is_meta or storage.nbytes() != _made(*how).untyped_storage().nbytes():
            return None
        storages.add(storage._cdata)
        recipe.append(how)
    return tuple(recipe)


def _made(shape: torch.Size, strides: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.empty_strided(shape, strides, dtype=dtype, device="meta")
