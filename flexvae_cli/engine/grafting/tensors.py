"""A trained tensor made to fit a layer of another size, so that the layer does what it did as far as that is possible.

What is new reads nothing yet, and what was there does not read what is new: new input channels have weights of 0 into
the old outputs, new outputs keep their fresh weights, larger kernels are 0 around the old one, and a kernel of one more
axis is the old one at the middle of that axis, 0 elsewhere. Fewer channels are the first ones.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

Rows = Callable[[int, int], tuple[list[int], list[int]]]
"""From the numbers of output channels, old and new, to the old ones that are carried, and to where they go."""


def first(old: int, new: int) -> tuple[list[int], list[int]]:
    """The first channels stay the first."""
    both = list(range(min(old, new)))
    return both, both


def halves(old: int, new: int) -> tuple[list[int], list[int]]:
    """Means and log-variances, a half each, stay what they are."""
    both = range(min(old, new) // 2)
    return [*both, *(old // 2 + n for n in both)], [*both, *(new // 2 + n for n in both)]


LENGTHS, DIRECTIONS = {"weight_g", "original0"}, {"weight_v", "original1"}  # of weights that are normalised


def is_convolution(module: nn.Module) -> bool:
    """Whether a module has a kernel of its own: torch's convolutions, and those of normalised weights."""
    return isinstance(module, _ConvNd) or hasattr(module, "weight_v")


def fitted(
    old: Tensor,
    fresh: Tensor,
    modules: tuple[nn.Module, nn.Module],
    name: str,
    rows: Rows = first,
    *,
    transposed: bool = False,
) -> Tensor | None:
    """The trained tensor at the size of a freshly drawn one; None where nothing of it can be carried over.

    Args:
        old: the trained tensor.
        fresh: what the new layer would start with.
        modules: that which the trained tensor belongs to, and that which the result is for.
        name: of the tensor in them, such as `weight`.
        rows: which output channels become which.
        transposed: whether input channels come first in a kernel, then output channels.
    """
    convolution = is_convolution(modules[1])
    if convolution and not (is_convolution(modules[0]) and _same_groups(*modules, old.shape[:2] == fresh.shape[:2])):
        return None
    if old.shape == fresh.shape and rows is first:
        return old.to(fresh.dtype)
    if convolution:
        old = _kernel(old, fresh) if old.dim() > 1 else old
    elif old.dim() == 2 and not isinstance(modules[1], nn.Linear) and fresh.shape[0] != fresh.shape[-1]:
        return None
    if old.dim() != fresh.dim() or old.dim() == 0 or old.shape[2:] != fresh.shape[2:]:
        return None
    old, result = old.to(fresh.dtype), fresh.clone()
    if old.dim() > 1 and (transposed or isinstance(modules[1], _ConvTransposeNd)):
        return _transposed(old, result, name)
    taken, put = (torch.tensor(places, dtype=torch.long) for places in rows(old.shape[0], fresh.shape[0]))
    if old.dim() == 1:
        result[put] = old[taken]
        return result
    inputs = min(old.shape[1], fresh.shape[1])
    block = torch.zeros(len(put), *fresh.shape[1:], dtype=fresh.dtype)
    block[:, :inputs] = old[taken, :inputs]
    result[put] = block
    return result


def delta_(module: nn.Module) -> bool:
    """Makes a convolution that keeps the size pass its first channels on as they are; False where it cannot.

    Outputs beyond the inputs keep their weights.
    """
    if not isinstance(module, _ConvNd) or isinstance(module, _ConvTransposeNd) or hasattr(module, "parametrizations"):
        return False
    odd = all(k % 2 for k in module.kernel_size)
    if set(module.stride) != {1} or not odd or (module.groups > 1 and module.in_channels != module.out_channels):
        return False
    both, inputs = min(module.in_channels, module.out_channels), module.weight.shape[1]
    with torch.no_grad():
        module.weight[:both] = 0
        channel = torch.arange(both)
        taps = module.weight.flatten(2)  # a view, (out, in, taps)
        taps[channel, channel % inputs, taps.shape[2] // 2] = 1  # the middle one: all sizes are odd
        if module.bias is not None:
            module.bias[:both] = 0
    return True


def _same_groups(was: nn.Module, now: nn.Module, same_channels: bool) -> bool:
    """Whether the channels of a group are those that they were."""
    groups = [int(getattr(each, "groups", 1)) for each in (was, now)]
    widths = [getattr(each, side, 0) for each in (was, now) for side in ("in_channels", "out_channels")]
    depthwise = widths == [groups[0], groups[0], groups[1], groups[1]]
    return depthwise or (groups[0] == groups[1] and (groups[0] == 1 or same_channels))


def _kernel(old: Tensor, fresh: Tensor) -> Tensor:
    """The old kernel with the axes and sizes of the new one, in the middle of it."""
    while old.dim() < fresh.dim():  # the new axis comes first, as depth does
        old = old.unsqueeze(2)
    for axis in range(2, fresh.dim() if old.dim() == fresh.dim() else 0):
        more = fresh.shape[axis] - old.shape[axis]
        if more < 0:
            old = old.narrow(axis, -more // 2, fresh.shape[axis])
        elif more > 0:
            before = (more + 1) // 2 if old.shape[axis] == 1 else more // 2
            shape = list(old.shape)
            shape[axis] = fresh.shape[axis]
            grown = old.new_zeros(shape)
            grown.narrow(axis, before, old.shape[axis]).copy_(old)
            old = grown
    return old


def _transposed(old: Tensor, result: Tensor, name: str) -> Tensor:
    """(in, out, ...): new inputs have weights of 0 into the old outputs.

    Where weights are normalised, a direction of 0 has no length: there the length of what is new is 0 instead, and old
    inputs do not reach new outputs.
    """
    inputs, outputs = (min(a, b) for a, b in zip(old.shape[:2], result.shape[:2], strict=True))
    if name in LENGTHS:
        result[inputs:] = 0
    elif name in DIRECTIONS:
        result[:inputs] = 0
    else:
        result[inputs:, :outputs] = 0
    result[:inputs, :outputs] = old[:inputs, :outputs]
    return result
