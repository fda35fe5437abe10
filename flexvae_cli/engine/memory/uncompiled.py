"""torch without its compiler, for a program that compiles nothing.

What the compiler must not touch, torch marks so by a function of the compiler, when it is first called: optimizers and
much of what runs on meta tensors. That loads hundreds of modules, which takes a second. Recomputed layers read its
settings, and load it; and so does a torch that turns out to be built otherwise than is known here.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from types import FunctionType
from typing import Any

import torch
from torch.optim import Optimizer

MARK = "__dynamo_disable"


def leave_compiler_out() -> None:
    """Let all that is kept from the compiler run as it is, in this process and for good."""
    for keeping in gc.get_referrers(Optimizer.zero_grad.__code__):  # they share their code, and so are found by it
        kept = _closed_over(keeping, "fn")
        if isinstance(kept, FunctionType):
            vars(kept).setdefault(MARK, kept)
    for kind in _kinds(Optimizer):
        step = vars(kind).get("step")
        # asks the compiler to stop, and leaves gradients out of it
        if isinstance(step, FunctionType) and step.__code__.co_name == "_use_grad":
            kind.step = torch.no_grad()(_closed_over(step, "func"))  # type: ignore[method-assign]


def _closed_over(function: Any, name: str) -> Any:
    """What a function has by a name from around it; None where it has nothing."""
    if not isinstance(function, FunctionType) or name not in function.__code__.co_freevars:
        return None
    return (function.__closure__ or ())[function.__code__.co_freevars.index(name)].cell_contents


def _kinds(of: type[Optimizer]) -> Iterator[type[Optimizer]]:
    for kind in of.__subclasses__():
        yield kind
        yield from _kinds(kind)
