"""Gradients summed over processes, many in one message."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

MESSAGE = 25 << 20  # bytes: large enough for the full speed of a link, small beside the gradients
UNDER_WAY = 2  # messages on their way while the next one is packed

Reduce = Callable[[Tensor], Callable[[], None]]
"""Starts to replace a flat tensor by its sum over all processes; what it returns waits for the sum."""


@torch.no_grad()
def sum_gradients(parameters: Iterable[nn.Parameter], reduce: Reduce, message: int = MESSAGE) -> None:
    """Replace gradients by their sums over all processes, each of which gives the same parameters in the same order.

    A process that has no gradient for a parameter counts as zero there. A parameter for which no process has one keeps
    none, as in a process that trains alone: optimizers pass it over.

    Args:
        parameters: frozen ones are left out.
        reduce: see `Reduce`.
        message: the most bytes that it is given at a time, unless a single gradient is larger.
    """
    learning = [p for p in parameters if p.requires_grad]
    _agree(learning, reduce)
    under_way: deque[tuple[list[Tensor], Tensor, Callable[[], None]]] = deque()
    for group in groups([p.grad for p in learning if p.grad is not None], message):
        flat = torch.cat([gradient.reshape(-1) for gradient in group])
        under_way.append((group, flat, reduce(flat)))
        if len(under_way) > UNDER_WAY:
            _unpack(*under_way.popleft())
    while under_way:
        _unpack(*under_way.popleft())


def _agree(learning: Sequence[nn.Parameter], reduce: Reduce) -> None:
    """Give a gradient of zero to every parameter that has one elsewhere; the device is waited for only then."""
    if not learning:
        return
    found = torch.tensor([float(p.grad is not None) for p in learning], device=learning[0].device)
    reduce(found)()
    if any(p.grad is None for p in learning):
        for parameter, elsewhere in zip(learning, found.tolist(), strict=True):
            if parameter.grad is None and elsewhere:
                parameter.grad = torch.zeros_like(parameter)


def _unpack(group: list[Tensor], flat: Tensor, wait: Callable[[], None]) -> None:
    wait()
    for gradient, total in zip(group, flat.split([gradient.numel() for gradient in group]), strict=True):
        gradient.copy_(total.view(gradient.shape))


def groups(tensors: Sequence[Tensor], most: int) -> Iterator[list[Tensor]]:
    """Tensors in groups of one type, in order, that have at most `most` bytes or one tensor."""
    by_type: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        by_type.setdefault(tensor.dtype, []).append(tensor)
    for same in by_type.values():
        group, size = list[Tensor](), 0
        for tensor in same:
            if group and size + tensor.nbytes > most:
                yield group
                group, size = [], 0
            group.append(tensor)
            size += tensor.nbytes
        yield group
