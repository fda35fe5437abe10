"""What a CPU's convolutions take beside their tensors: copies in the layout of the library that computes them.

oneDNN computes in blocks of channels. Of tensors whose channels lie apart, torch makes blocked copies, padded to whole
blocks, of what is read and of what is written, and frees them before the operation returns. Tensors in channels-last
order are read as they are. What a stride spreads, in a transposed convolution or in the gradient of a strided one, is
made in channels-last order in padded room of each thread, and goes through two copies to where it should be. A single
small sample is computed without the library, through columns, and so are 1x1 convolutions on one thread, directly. What
stands here was read from the record of torch's allocator, operation by operation.
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
How = tuple[list[int], list[int], list[int]]
"""Stride, padding and dilation, per axis."""
ROOM = 1 << 14  # bytes: what a thread's room is rounded up to
SMALL = 20_480  # numbers in a single sample up to which torch computes without the library


def copies(func: Any, args: tuple[Any, ...], out: Any) -> Iterator[Extra]:
    """The copies of a convolution, or of its backward pass."""
    if func is _ATEN.convolution.default:
        x, weight, _, stride, padding, dilation, transposed, _, groups = args
        how, given = (stride, padding, dilation), [x, weight]
        bytes_ = _alone(x, weight, out, how, groups, transposed)
        bytes_ = _forward(x, weight, out, how, transposed) if bytes_ is None else bytes_
    elif func is _ATEN.convolution_backward.default:
        gradient, x, weight, _, stride, padding, dilation, transposed, _, groups, _ = args
        how, given = (stride, padding, dilation), [gradient, x, weight]
        bytes_ = _alone(x, weight, gradient, how, groups, transposed)
        bytes_ = _backward(gradient, x, weight, how, transposed, out[0] is not None) if bytes_ is None else bytes_
    else:
        return
    bytes_ += sum(tensor.nbytes for tensor in given if _is_moved(tensor, x, weight))
    if bytes_ > 0:
        yield Extra(bytes_)


def _alone(x: Tensor, weight: Tensor, out: Tensor, how: How, groups: int, transposed: bool) -> int | None:
    """What torch takes where it computes without the library; `None` where it does not."""
    stride, _, dilation = how
    plain = all(n == 1 for n in (*stride, *dilation))
    if transposed or x.dtype != torch.float32:
        return None
    if plain and all(n == 1 for n in weight.shape[2:]) and x.shape[0] < 16 and torch.get_num_threads() == 1:
        return 0
    if x.shape[0] == 1 and groups == 1 and x.numel() <= SMALL and min(weight.shape[2:]) <= 3:
        return math.prod(weight.shape[1:]) * math.prod(out.shape[2:]) * x.element_size()  # every window, side by side
    return None


def _forward(x: Tensor, weight: Tensor, out: Tensor, how: How, transposed: bool) -> int:
    if _is_last(x, weight):
        return weight.nbytes
    if transposed and max(how[0]) > 1:
        return _spread(x, weight, out, how)
    read = _blocked(x) if x.shape[1] >= _block() else 0
    if transposed:
        return read + weight.nbytes + _blocked(out)
    return max(read + _blocked(weight, 2) + _blocked(out) - out.nbytes, _blocked(out))


def _backward(gradient: Tensor, x: Tensor, weight: Tensor, how: How, transposed: bool, input_too: bool) -> int:
    if _is_last(x, weight):
        return 2 * weight.nbytes
    few = transposed and gradient.shape[1] < 4  # then it is what a plain convolution reads
    arrived = 0 if few else _blocked(gradient)
    read = _blocked(x) if x.shape[1] >= 4 else 0
    made = weight.nbytes if few or not read else _blocked(weight, 2)
    of_weight = max(arrived + read + made - weight.nbytes, made)
    if not input_too:
        return of_weight
    if not transposed and max(how[0]) > 1:
        return max(of_weight, _spread(gradient, weight, x, how) - weight.nbytes)
    of_input = arrived + _blocked(weight, 2) + _blocked(x) - x.nbytes - weight.nbytes
    return max(of_weight, of_input, _blocked(x) - weight.nbytes)


def _spread(read: Tensor, weight: Tensor, made: Tensor, how: How) -> int:
    """What it takes beside `made` where each position of `read` goes to several, a stride apart.

    Every thread has room for a sample of what is read, with the positions around it that the kernel reaches into.
    """
    channels, *space = read.shape[1:]
    room = math.ceil(channels / _block()) * _block() * read.element_size()
    for n, m, k, s, p, d in zip(space, made.shape[2:], weight.shape[2:], *how, strict=True):
        room *= max(n, (m - 1 + p) // s + 1) + max(0, (d * (k - 1) - p) // s)
    room = torch.get_num_threads() * (math.ceil(room / ROOM) * ROOM + ROOM // 2) + ROOM * 3 // 4
    return max(read.nbytes + _blocked(weight, 2) + room, 2 * made.nbytes)


def _blocked(tensor: Tensor, axes: int = 1) -> int:
    """Bytes of a tensor with its channels, or both axes of channels of a weight, padded to whole blocks."""
    padded = tensor.nbytes
    for count in tensor.shape[:2] if axes == 2 else tensor.shape[1:2]:
        padded = padded // count * math.ceil(count / _block()) * _block()
    return padded


@cache
def _block() -> int:
    return 16 if "AVX512" in torch.backends.cpu.get_cpu_capability() else 8


def _is_last(x: Tensor, weight: Tensor) -> bool:
    """Whether a convolution computes in channels-last order: one of the two that it reads lies so."""
    return _is_channels_last(x) or _is_channels_last(weight)


def _is_channels_last(x: Tensor) -> bool:
    """Whether the channels of a position lie side by side, and it is not just one channel or one position."""
    return x.dim() > 2 and not x.is_contiguous() and x.stride(1) == 1


def _is_moved(tensor: Tensor, x: Tensor, weight: Tensor) -> bool:
    """Whether a tensor lies otherwise than a convolution computes, so that torch copies it for the time."""
    if not _is_last(x, weight):
        return not tensor.is_contiguous()
    return not tensor.movedim(1, -1).is_contiguous()
