"""What a CPU's convolutions take beside their tensors: copies in the layout of the library that computes them.

oneDNN computes in blocks of channels. Of tensors whose channels lie apart, torch makes blocked copies, padded to whole
blocks, of what is read and of what is written, and frees them before the operation returns. Tensors in channels-last
order are read as they are, and so are those of 1x1 convolutions. A single small sample is computed without the library,
through columns. What stands here was read from the record of torch's allocator, operation by operation.
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
        x, weight, stride, dilation, transposed = args[0], args[1], args[3], args[5], args[6]
        bytes_ = _forward(x, weight, out, transposed, _is_pointwise(weight, stride, dilation))
    elif func is _ATEN.convolution_backward.default:
        gradient, x, weight, stride, dilation, transposed = *args[:3], args[4], args[6], args[7]
        pointwise = _is_pointwise(weight, stride, dilation) and not transposed
        bytes_ = _backward(gradient, x, weight, transposed, pointwise, out[0] is not None)
    else:
        return
    if bytes_ > 0:
        yield Extra(bytes_)


def _forward(x: Tensor, weight: Tensor, out: Tensor, transposed: bool, pointwise: bool) -> int:
    if _is_without_library(x) and not transposed:
        return _columns(x, weight, out)
    if _is_channels_last(x):
        return weight.nbytes
    if pointwise and not transposed:
        return 0
    read = _blocked(x) if x.shape[1] >= _block() else 0
    if transposed:
        return read + weight.nbytes + _blocked(out)
    return max(read + _blocked(weight, 2) + _blocked(out) - out.nbytes, _blocked(out))


def _backward(gradient: Tensor, x: Tensor, weight: Tensor, transposed: bool, pointwise: bool, input_too: bool) -> int:
    if _is_without_library(x):
        return _columns(x, weight, gradient)
    if _is_channels_last(x):
        return 2 * weight.nbytes
    if pointwise:
        return 0
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


def _is_without_library(x: Tensor) -> bool:
    return x.shape[0] == 1 and x.numel() <= SMALL


def _columns(x: Tensor, weight: Tensor, out: Tensor) -> int:
    """Every window of one sample, side by side."""
    return math.prod(weight.shape[1:]) * math.prod(out.shape[2:]) * x.element_size()


def _is_pointwise(weight: Tensor, stride: list[int], dilation: list[int]) -> bool:
    return all(n == 1 for n in (*weight.shape[2:], *stride, *dilation))


def _is_channels_last(x: Tensor) -> bool:
    """Whether the channels of a position lie side by side, and it is not just one channel or one position."""
    return x.dim() > 2 and not x.is_contiguous() and x.stride(1) == 1
