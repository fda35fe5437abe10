"""What a CPU's convolutions take beside their tensors: copies in the layout of the library that computes them.

oneDNN computes in blocks of channels. Of tensors whose channels lie apart, torch makes blocked copies, padded to whole
blocks, of what is read and of what is written, and frees them before the operation returns. Tensors in channels-last
order are read as they are. A single small sample is computed without the library, through columns, and so are 1x1
convolutions on one thread, directly. What stands here was read from the record of torch's allocator, operation by
operation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor

from flexvae_cli.engine.memory.tracker import Extra

_ATEN = torch.ops.aten
SMALL = 20_480  # numbers in a single sample up to which torch computes without the library


def copies(func: Any, args: tuple[Any, ...], out: Any) -> Iterator[Extra]:
    """The blocked copies of a convolution, or of its backward pass."""
    if func is _ATEN.convolution.default:
        x, weight, _, stride, _, dilation, transposed, _, groups = args
        bytes_ = _alone(x, weight, out, (stride, dilation, groups), transposed)
        bytes_ = _forward(x, weight, out, transposed) if bytes_ is None else bytes_
    elif func is _ATEN.convolution_backward.default:
        gradient, x, weight, _, stride, _, dilation, transposed, _, groups, _ = args
        bytes_ = _alone(x, weight, gradient, (stride, dilation, groups), transposed)
        bytes_ = _backward(gradient, x, weight, transposed, out[0] is not None) if bytes_ is None else bytes_
    else:
        return
    if bytes_ > 0:
        yield Extra(bytes_)


def _alone(
    x: Tensor, weight: Tensor, out: Tensor, how: tuple[list[int], list[int], int], transposed: bool
) -> int | None:
    """What torch takes where it computes without the library; `None` where it does not."""
    stride, dilation, groups = how
    plain = all(n == 1 for n in (*stride, *dilation))
    if transposed or x.dtype != torch.float32:
        return None
    if plain and all(n == 1 for n in weight.shape[2:]) and x.shape[0] < 16 and torch.get_num_threads() == 1:
        return 0
    if x.shape[0] == 1 and groups == 1 and x.numel() <= SMALL and min(weight.shape[2:]) <= 3:
        return math.prod(weight.shape[1:]) * math.prod(out.shape[2:]) * x.element_size()  # every window, side by side
    return None


def _forward(x: Tensor, weight: Tensor, out: Tensor, transposed: bool) -> int:
    if _is_channels_last(x):
        return weight.nbytes
    read = _blocked(x) if x.shape[1] >= _block() else 0
    if transposed:
        return read + weight.nbytes + _blocked(out)
    return max(read + _blocked(weight, 2) + _blocked(out) - out.nbytes, _blocked(out))


def _backward(gradient: Tensor, x: Tensor, weight: Tensor, transposed: bool, input_too: bool) -> int:
    if _is_channels_last(x):
        return 2 * weight.nbytes
    few = transposed and gradient.shape[1] < 4  # then it is what a plain convolution reads
    arrived = 0 if few else _blocked(gradient)
    of_weight = max(arrived + (_blocked(x) if x.shape[1] >= 4 else 0), _blocked(weight, 2))
    if not input_too:
        return of_weight
    of_input = arrived + _blocked(weight, 2) + _blocked(x) - x.nbytes - weight.nbytes
    return max(of_weight, of_input, _blocked(x) - weight.nbytes)


def _blocked(tensor: Tensor, axes: int = 1) -> int:
    """Bytes of a tensor with its channels, or both axes of channels of a weight, padded to whole blocks."""
    padded = tensor.nbytes
    for count in tensor.shape[:2] if axes == 2 else tensor.shape[1:2]:
        padded = padded // count * math.ceil(count / _block()) * _block()
    return padded


@cache
def _block() -> int:
    return 16 if "AVX512" in torch.backends.cpu.get_cpu_capability() else 8


def _is_channels_last(x: Tensor) -> bool:
    """Whether the channels of a position lie side by side, and it is not just one channel or one position."""
    return x.dim() > 2 and not x.is_contiguous() and x.stride(1) == 1
