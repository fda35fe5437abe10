"""What CUDA's libraries take beside the tensors of an operation: as cuDNN itself says, else by rule.

The rule is read off cuDNN 9.24's own answers for the first plan that torch would take, asked for 3x3 convolutions and
four GPUs. Either way the plan may turn out to be another one, since torch goes on to the next where one fails.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from flexvae_cli.engine.memory.cudnn import Cudnn, Operation, calls
from flexvae_cli.engine.memory.devices import Gpu
from flexvae_cli.engine.memory.tracker import Extra

MIB = 2**20
_ATEN = torch.ops.aten
FORWARD, BACKWARD = _ATEN.convolution.default, _ATEN.convolution_backward.default
PRODUCTS = {_ATEN.mm.default, _ATEN.addmm.default, _ATEN.bmm.default, _ATEN.baddbmm.default}
HALF = (torch.bfloat16, torch.float16)


class Libraries:
    """What operations take beside their outputs on a GPU; to be asked in the order in which they run.

    Args:
        gpu: where.
        cudnn: what to ask; None takes the rule.
        tf32: whether convolutions of fp32 may go through tf32.

    Attributes:
        ruled: whether the rule was taken for a convolution.
    """

    def __init__(self, gpu: Gpu, cudnn: Cudnn | None = None, *, tf32: bool = False) -> None:
        self.gpu, self.cudnn, self.tf32 = gpu, cudnn, tf32
        self.ruled = False
        self._blas = False

    def __call__(self, operation: Any, args: tuple[Any, ...], out: Any) -> Iterator[Extra]:
        if operation is FORWARD:
            x, weight, _, *how, transposed, _, groups = args
            made: list[Operation] = ["dgrad" if transposed else "fprop"]
            yield from self._convolution(x, weight, out, (how, transposed, groups), made, backward=False)
        elif operation is BACKWARD:
            gradient, x, weight, _, *how, transposed, _, groups, wanted = args
            both: tuple[Operation, Operation] = ("fprop" if transposed else "dgrad", "wgrad")
            made = [each for each, want in zip(both, wanted, strict=False) if want]
            yield from self._convolution(x, weight, gradient, (how, transposed, groups), made, backward=True)
        elif operation in PRODUCTS and not self._blas:
            self._blas = True
            yield Extra(self.gpu.cublas_workspace, "cublas", stays=True)

    def _convolution(
        self, x: Tensor, weight: Tensor, y: Tensor, how: tuple[Any, bool, int], made: list[Operation], *, backward: bool
    ) -> Iterator[Extra]:
        axes, transposed, groups = how
        if groups == x.shape[1] > 1:  # depthwise: torch's own kernels
            return
        last = any(t.dim() == 4 and t.is_contiguous(memory_format=torch.channels_last) for t in (x, weight))
        moved = [t for t in ((x, y) if backward else (x,)) if last and not _in_layout(t)]
        image, response = (y, x) if transposed else (x, y)
        asked = calls(made, image, weight, response, axes, channels_last=last, tensor_cores=self.tf32)
        named = [self.cudnn.workspace(call) if self.cudnn else None for call in asked]
        known = [size for size in named if size is not None]
        needed = max(known, default=0) or 1  # at every batch as many blocks, so that others can be aimed by
        if len(known) < len(named):
            self.ruled = True
            needed = convolution_workspace(
                self.gpu, x, weight, y, channels_last=last, backward=backward, tf32=self.tf32
            )
        if needed or moved:
            yield Extra(needed + sum(t.nbytes for t in moved))


def _in_layout(x: Tensor) -> bool:
    return x.dim() != 4 or x.is_contiguous(memory_format=torch.channels_last)


def convolution_workspace(
    gpu: Gpu, x: Tensor, weight: Tensor, y: Tensor, *, channels_last: bool, backward: bool, tf32: bool = False
) -> int:
    """Bytes of cuDNN's workspace by the rule, the larger one where a backward pass needs two in turn.

    Args:
        gpu: where.
        x: what goes in.
        weight: of the convolution.
        y: what comes out.
        channels_last: the layout that cuDNN is called in.
        backward: for both gradients, or for the output.
        tf32: whether fp32 may go through tf32, on tensor cores.
    """
    around, own = x.nbytes + y.nbytes, 3 * weight.nbytes
    if x.dtype in HALF:
        if channels_last:
            most = 2 * MIB if gpu.capability >= (9, 0) else 8 * MIB
            return min(most, around + own) if backward else 0
        return around + own  # both are brought into the other layout
    if tf32 and gpu.capability >= (9, 0):
        return around + own if not channels_last else min(2 * MIB, around + own) if backward else 0
    if tf32 and gpu.capability >= (8, 0):
        return around + own if backward else x.nbytes + own
    return around + own if channels_last else min(2 * MIB, around + own)
