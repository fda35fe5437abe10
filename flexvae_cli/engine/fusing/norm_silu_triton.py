"""GroupNorm and SiLU as one function on a GPU: what `norm_silu.py` does, by the kernels of `norm_silu_kernels.py`.

It computes in fp32 and rounds once, keeps x alone beside the groups' statistics, and adds in a fixed order, so it is
deterministic. Contiguous and channels-last differ in strides alone, and so does the number of axes: to a kernel, x is
(b, c, positions). Importing this imports Triton, whose wheel comes with torch's for Linux.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from flexvae_cli.engine.fusing import norm_silu_kernels as kernels

TYPES = (torch.float32, torch.bfloat16, torch.float16)
TILE = 2048  # elements of x that a program has at a time
WIDEST = 64  # channels of a tile, where channels lie side by side
DEPTH = 256  # positions of a program at least, where there are as many: few partial sums beside x
LARGE = 1 << 30  # elements from which 32 bits may not do for an index


def takes(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether the kernels can compute it: x (b, c, *space) and the weights of a type of theirs, and not empty."""
    known = bias is not None and {x.dtype, weight.dtype, bias.dtype} <= set(TYPES)
    return known and x.dim() > 2 and x.numel() > 0


def works(device: torch.device) -> bool:
    """Whether kernels can be made for a device: it may be too old, or a compiler missing.

    Raises:
        OutOfMemoryError: there is no memory to find out.
    """
    try:
        _one_group(device)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # what a driver, a compiler and a linker fail with have nothing in common
        return False
    return True


def _one_group(device: torch.device) -> Tensor:
    """What the smallest kernel finds of one zero: its mean, and the inverse of its deviation."""
    x, parts, found = (torch.zeros(n, 1, 1, device=device) for n in (1, 2, 2))
    Cut.of(x, 1).launch_groups(kernels.joined, *parts, *found, 1.0)
    return found


class GroupNormSilu(torch.autograd.Function):
    """silu(group_norm(x)), with the arguments of its counterpart in `norm_silu.py`; `wide` changes nothing here."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, wide: bool
    ) -> Tensor:
        del wide
        x = _dense(x)
        cut = Cut.of(x, groups)
        parts = x.new_empty((2, *cut.parts), dtype=torch.float32)
        mean, inverse = x.new_empty((2, cut.samples, groups), dtype=torch.float32)
        out = torch.empty_like(x)
        cut.launch(kernels.moments, x, *parts)
        cut.launch_groups(kernels.joined, *parts, mean, inverse, eps)
        cut.launch(kernels.forward, x, out, weight, bias, mean, inverse, groups, cut.per_group)
        ctx.save_for_backward(x, weight, bias, mean, inverse)
        ctx.groups = groups
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight, bias, mean, inverse = ctx.saved_tensors
        cut = Cut.of(x, ctx.groups)
        gradient = _lying_as(gradients[0], x)
        parts = x.new_empty((2, *cut.parts), dtype=torch.float32)
        known = (weight, bias, mean, inverse)
        cut.launch(kernels.sums, x, gradient, *parts, *known, ctx.groups, cut.per_group)
        sums = parts.sum(-1)  # (2, b, c), of dy and of dy (x - mean) / deviation
        grouped = (sums * weight).view(2, cut.samples, ctx.groups, cut.per_group)
        means = grouped.sum(-1) / (cut.per_group * cut.positions)
        dx = torch.empty_like(x)
        cut.launch(kernels.backward, x, gradient, dx, *known, *means, ctx.groups, cut.per_group)
        dbias, dweight = sums.sum(1)
        return dx, dweight.to(weight.dtype), dbias.to(bias.dtype), None, None, None


@dataclass(frozen=True)
class Cut:
    """How x is cut into the tiles that programs work on.

    Attributes:
        samples, channels, positions: of x.
        strides: of them, in elements.
        per_group: channels of a group.
        block: channels and positions of a tile, powers of two.
        steps: tiles of a program, one after the other.
    """

    samples: int
    channels: int
    positions: int
    strides: tuple[int, int, int]
    per_group: int
    block: tuple[int, int]
    steps: int

    @classmethod
    def of(cls, x: Tensor, groups: int) -> Cut:
        """The cut of a tensor (b, c, *space), contiguous or channels-last."""
        samples, channels = x.shape[:2]
        positions = prod(x.shape[2:])
        side_by_side = not x.is_contiguous()  # channels are
        if side_by_side:
            wide = min(WIDEST, triton.next_power_of_2(channels))
            long = min(TILE // wide, triton.next_power_of_2(positions))
        else:
            long = min(TILE, triton.next_power_of_2(positions))
            wide = min(TILE // long, triton.next_power_of_2(channels))
        strides = (channels * positions, 1, channels) if side_by_side else (channels * positions, positions, 1)
        steps = max(1, min(DEPTH // long, -(-positions // long)))
        return cls(samples, channels, positions, strides, channels // groups, (wide, long), steps)

    @property
    def tiles(self) -> int:
        """Programs along the positions."""
        return -(-self.positions // (self.steps * self.block[1]))

    @property
    def parts(self) -> tuple[int, int, int]:
        """Of a tensor with a number for every channel and tile."""
        return self.samples, self.channels, self.tiles

    @property
    def large(self) -> bool:
        """Whether indices take 64 bits."""
        return self.samples * self.strides[0] > LARGE

    def launch(self, kernel: Any, *arguments: Any) -> None:
        """Run a kernel with a program for every tile."""
        programs = self.samples * -(-self.channels // self.block[0]) * self.tiles
        sizes = (self.channels, self.positions, *self.strides, self.tiles)
        self._run(kernel, programs, *arguments, *sizes, self.steps, *self.block, self.large)

    def launch_groups(self, kernel: Any, *arguments: Any) -> None:
        """Run a kernel with a program for every group of a sample."""
        sizes = (self.positions, self.per_group, self.tiles, self.steps * self.block[1])
        self._run(kernel, self.samples * (self.channels // self.per_group), *arguments, *sizes, TILE, self.large)

    @staticmethod
    def _run(kernel: Any, programs: int, first: Tensor, *arguments: Any) -> None:
        if first.device.type != "meta":  # what stands for a GPU's memory takes what the kernels take, and no more
            with torch.cuda.device_of(first):
                kernel[(programs,)](first, *arguments)


def _dense(x: Tensor) -> Tensor:
    """x where it is contiguous or channels-last, else a copy that is."""
    return x if x.movedim(1, -1).is_contiguous() else x.contiguous()


def _lying_as(gradient: Tensor, x: Tensor) -> Tensor:
    """A gradient with the layout of x."""
    last = not x.is_contiguous()
    if gradient.movedim(1, -1).is_contiguous() if last else gradient.is_contiguous():
        return gradient
    return torch.empty_like(x).copy_(gradient)
