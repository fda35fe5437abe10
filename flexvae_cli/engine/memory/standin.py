"""Layers that cannot run on torch's meta device (`meta=False`): seen apart, and stood in for by what holds as much.

First on fake tensors, which say that they are a CPU's and have no memory either: they take what mixes in numbers of its
own, and the batch itself is looked at. A layer that looks at its numbers cannot run on these either. It takes a few
small passes for real, and what it needs is drawn out from them on a straight line.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode
from torch.utils._python_dispatch import _disable_current_modes

from flexvae_cli.api import LayerSpec
from flexvae_cli.codes import Bound
from flexvae_cli.engine import build
from flexvae_cli.engine.memory.tracker import Tracker
from flexvae_cli.errors import UsageError

BATCHES = (2, 3, 4)  # measured for real; what is between the outer ones has to lie on their line
TOLERANCE = 0.01  # of what was measured
SLACK = 4096  # bytes that are no matter


@dataclass(frozen=True, slots=True)
class Needs:
    """What a layer takes at some batch, in bytes, and the shape (c, *space) that it gives.

    Attributes:
        kept: for the backward pass, beside what comes in and goes out.
        forward, backward: most for a moment, beside gradients in the latter.
    """

    gives: tuple[int, ...]
    kept: int
    forward: int
    backward: int


class StandIn(nn.Module):
    """Holds as much as a layer does; its parts, parameters and buffers are the layer's by name, without memory.

    Args:
        module: the layer, on the CPU.
        name: for messages, as in `Foo_3`.
        where: its place.
    """

    def __init__(self, module: nn.Module, name: str, where: str) -> None:
        super().__init__()
        self.stands_for = f"{where} {name}"
        self.computed = False  # whether it took real passes to know
        _own(self, module, {})
        self._faked = lru_cache(None)(lambda shape, batch: on_fakes(module, shape, batch))
        self._real = lru_cache(None)(lambda shape: needs_of(module, shape, name, where))

    def forward(self, x: Tensor) -> Tensor:
        shape = tuple(x.shape[1:])
        needs = self._faked(shape, len(x))
        if needs is None:
            self.computed, needs = True, self._real(shape)(len(x))
        out: Tensor = _Stand.apply(x, needs, *self.parameters())  # type: ignore[no-untyped-call]
        return out


def _own(stand_in: nn.Module, module: nn.Module, known: dict[Tensor, Tensor]) -> None:
    """Let one module have parts, parameters and buffers as another one has them; what is shared stays so."""
    for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
        fresh = nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)
        stand_in.register_parameter(name, known.setdefault(parameter, fresh))  # type: ignore[arg-type]
    for name, buffer in module.named_buffers(recurse=False, remove_duplicate=False):
        stand_in.register_buffer(name, known.setdefault(buffer, buffer.to("meta")))
    for name, part in module.named_children():
        stand_in.add_module(name, nn.Module())
        _own(stand_in.get_submodule(name), part, known)


class _Stand(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, needs: Needs, *parameters: Tensor) -> Tensor:
        _hold(needs.forward)
        ctx.needs = needs
        ctx.save_for_backward(x, _hold(needs.kept), *parameters)
        return x.new_empty(len(x), *needs.gives)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        x, _kept, *parameters = ctx.saved_tensors
        meanwhile = _hold(ctx.needs.backward)
        wanted = [ctx.needs_input_grad[0], *ctx.needs_input_grad[2:]]
        pairs = zip([x, *parameters], wanted, strict=True)
        x_gradient, *others = (torch.empty_like(t) if want else None for t, want in pairs)
        del meanwhile  # held until the gradients are there
        return x_gradient, None, *others


def _hold(size: int) -> Tensor:
    return torch.empty(size, dtype=torch.uint8, device="meta")


@contextmanager
def standing_in() -> Iterator[None]:
    """While held, nets are built with a stand-in for every layer that cannot run without memory."""
    made: Callable[[Bound, str], nn.Module] = build._made

    def make(bound: Bound, where: str) -> nn.Module:
        if not isinstance(bound.spec, LayerSpec) or bound.spec.meta or bound.spec.quantizes:
            return made(bound, where)
        with torch.device("cpu"):
            return StandIn(made(bound, where).train(), str(bound.code), where)

    with patch.object(build, "_made", make):
        yield


def on_fakes(module: nn.Module, shape: tuple[int, ...], batch: int) -> Needs | None:
    """What a layer takes at a batch, on tensors that have no memory; None where it cannot run on them."""
    fakes = FakeTensorMode()
    try:
        with _disable_current_modes():
            with FakeCopyMode(fakes):
                module = copy.deepcopy(module)
            with fakes:
                return measured(module, shape, batch)
    except Exception:  # a stranger's forward; real passes tell what is wrong
        return None


def needs_of(module: nn.Module, shape: tuple[int, ...], name: str, where: str) -> Callable[[int], Needs]:
    """What a layer needs at any batch, from real passes at a few small ones.

    Raises:
        UsageError: it fails, or what it takes does not grow evenly with the batch.
    """
    try:
        few = [measured(module, shape, batch) for batch in BATCHES]
    except Exception as error:  # a stranger's forward
        raise UsageError(f"{name} fails on zeros: {error}", where=where) from error
    low, middle, high = few

    def at(read: Callable[[Needs], int], batch: int) -> int:
        each = (read(high) - read(low)) / (BATCHES[-1] - BATCHES[0])
        return max(0, round(read(low) + each * (batch - BATCHES[0])))

    reads: tuple[Callable[[Needs], int], ...] = (lambda n: n.kept, lambda n: n.forward, lambda n: n.backward)
    if any(abs(at(read, BATCHES[1]) - read(middle)) > TOLERANCE * read(middle) + SLACK for read in reads):
        what = f"{name} takes memory that does not grow evenly with the batch, and cannot run without memory"
        raise UsageError(what, where=where, hint="measure it where the device is: flexvae mem --probe always")
    return lambda batch: Needs(low.gives, *(at(read, batch) for read in reads))


def measured(module: nn.Module, shape: tuple[int, ...], batch: int) -> Needs:
    """What a pass forward and backward takes on the CPU."""
    module.zero_grad(set_to_none=True)
    x = torch.zeros(batch, *shape, requires_grad=True)
    gradients = x.nbytes + sum(p.nbytes for p in module.parameters() if p.requires_grad)
    with Tracker("cpu") as tracker:
        tracker.hold([x, *module.parameters(), *module.buffers()], "known")
        before, tracker.stage = tracker.held, "forward"
        y = module(x)
        held, forward = tracker.held, tracker.peak.bytes
        gradient = torch.ones_like(y)
        begin = tracker.held
        y.backward(gradient)
        backward = tracker.peak.bytes - begin
    kept = held - before - prod(y.shape) * y.element_size()
    return Needs(tuple(y.shape[1:]), max(0, kept), max(0, forward - held), max(0, backward - gradients))
