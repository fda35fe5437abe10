"""What CUDA's libraries take beside the tensors of an operation, by rule.

The rule is read off cuDNN 9.24's own answers for its first plan, asked for 3x3 convolutions and four GPUs; the plan
that torch takes in the end may be another one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from flexvae_cli.engine.memory.devices import Gpu
from flexvae_cli.engine.memory.tracker import Extra

MIB = 2**20
_ATEN = torch.ops.aten
FORWARD, BACKWARD = _ATEN.convolution.default, _ATEN.convolution_backward.default
PRODUCTS = {_ATEN.mm.default, _ATEN.addmm.default, _ATEN.bmm.default, _ATEN.baddbmm.default}
HALF = (torch.bfloat16, torch.float16)


class Libraries:
    """What operations take beside their outputs on a GPU; to be asked in the order in which they run."""

    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu
        self._blas = False

    def __call__(self, operation: Any, args: tuple[Any, ...], out: Any) -> Iterator[Extra]:
        if operation is FORWARD:
            yield from self._convolution(args[0], args[1], out, args[8], backward=False)
        elif operation is BACKWARD:
            yield from self._convolution(args[1], args[2], args[0], args[9], backward=True)
        elif operation in PRODUCTS and not self._blas:
            self._blas = True
            yield Extra(self.gpu.cublas_workspace, "cublas", stays=True)

    def _convolution(self, x: Tensor, weight: Tensor, y: Tensor, groups: int, *, backward: bool) -> Iterator[Extra]:
        if groups == x.shape[1] > 1:  # depthwise: torch's own kernels
            return
        last = any(t.dim() == 4 and t.is_contiguous(memory_format=torch.channels_last) for t in (x, weight))
        moved = [t for t in ((x, y) if backward else (x,)) if last and not _in_layout(t)]
        needed = convolution_workspace(self.gpu, x, weight, y, channels_last=last, backward=backward)
        if needed or moved:
            yield Extra(needed + sum(t.nbytes for t in moved))


def _in_layout(x: Tensor) -> bool:
    return x.dim() != 4 or x.is_contiguous(memory_format=torch.channels_last)


def convolution_workspace(
    gpu: Gpu, x: Tensor, weight: Tensor, y: Tensor, *, channels_last: bool, backward: bool
) -> int:
    """Bytes of cuDNN's workspace, the larger one where a backward pass needs two in turn.

    Args:
        gpu: where.
        x: what goes in.
        weight: of the convolution.
        y: what comes out.
        channels_last: the layout that cuDNN is called in.
        backward: for both gradients, or for the output.
    """
    around, own = x.nbytes + y.nbytes, 3 * weight.nbytes
    if x.dtype in HALF:
        if channels_last:
            most = 2 * MIB if gpu.capability >= (9, 0) else 8 * MIB
            return min(most, around + own) if backward else 0
        return around + own  # both are brought into the other layout
    if gpu.capability >= (9, 0):
        return around + own if not channels_last else min(2 * MIB, around + own) if backward else 0
    if gpu.capability >= (8, 0):
        return around + own if backward else x.nbytes + own
    return around + own if channels_last else min(2 * MIB, around + own)
