"""GroupNorm and the SiLU behind it as one function: it keeps the layout and one tensor, and recomputes the rest.

Between the two stands y = a x + b, with a and b of each sample and channel. Plain layers keep x for the norm's backward
pass and y for the SiLU's, under autocast both in fp32; this keeps x as it came in, and means and deviations of groups.
The backward pass makes y again, and needs sums over positions and elementwise arithmetic alone, which do not mind how
positions and channels lie in memory. `norm_silu_triton.py` is the same for GPUs.
"""

from __future__ import annotations

from functools import cache
from math import prod
from types import ModuleType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from flexvae_cli.engine import rules
from flexvae_cli.engine.fusing.fusion import Fusion, looked_at

ATEN = torch.ops.aten


class NormSilu(Fusion):
    """A norm and a SiLU that follow each other in a structure.

    Args:
        norm, silu: the layers.
        wide: whether it computes in fp32 what comes in less; it gives the type that comes in.
    """

    what = "group norm and SiLU as one function"
    kinds: ClassVar = (nn.GroupNorm, nn.SiLU)

    def __init__(self, norm: nn.GroupNorm, silu: nn.Module, *, wide: bool = True, always: bool = False) -> None:
        super().__init__(norm, silu, always=always)
        self.wide = wide

    @classmethod
    def of(cls, first: nn.Module, second: nn.Module, *, wide: bool = True, always: bool = False) -> NormSilu | None:
        """The fusion of two layers, where they are such a pair."""
        if type(first) is not nn.GroupNorm or type(second) is not nn.SiLU or not _weighted(first):
            return None
        return cls(first, second, wide=wide, always=always)

    def pays(self, x: Tensor) -> bool:
        norm = self.layers[0]
        assert isinstance(norm, nn.GroupNorm)
        return rules.norm_silu_pays(x, norm.num_groups)

    def together(self, x: Tensor) -> Tensor:
        norm = self.layers[0]
        assert isinstance(norm, nn.GroupNorm)
        return group_norm_silu(x, norm, wide=self.wide)


def _weighted(norm: nn.GroupNorm) -> bool:
    """Whether it has weights and biases."""
    return norm.weight is not None and norm.bias is not None


def norm_silu(norm: nn.Module, x: Tensor, *, wide: bool = True, always: bool = False) -> Tensor:
    """silu(norm(x)), for the place in a block where the two follow each other.

    Args:
        norm: any norm; the function is used for a GroupNorm with weights and biases that nobody looks at.
        x: (b, c, *space).
        wide, always: as in `NormSilu`.
    """
    if type(norm) is not nn.GroupNorm or not _weighted(norm) or looked_at(norm):
        return F.silu(norm(x))
    if not (always or rules.norm_silu_pays(x, norm.num_groups)):
        return F.silu(norm(x))
    return group_norm_silu(x, norm, wide=wide)


def group_norm_silu(x: Tensor, norm: nn.GroupNorm, *, wide: bool) -> Tensor:
    """The function, in and out (b, c, *space) of the same type and layout; on a GPU in Triton, where that is there."""
    kernels = triton_kernels(x.device) if rules.on_gpu(x.device) else None
    suits = kernels is not None and kernels.takes(x, norm.weight, norm.bias)
    function = kernels.GroupNormSilu if kernels is not None and suits else _GroupNormSilu
    with torch.autocast(x.device.type, enabled=False):
        out: Tensor = function.apply(x, norm.weight, norm.bias, norm.num_groups, norm.eps, wide)
    return out


@cache
def triton_kernels(device: torch.device) -> ModuleType | None:
    """The module of the kernels for a GPU, where Triton is installed and can make some for it."""
    try:
        from flexvae_cli.engine.fusing import norm_silu_triton
    except (ImportError, OSError):  # not there, or without a library that it wants
        return None
    return norm_silu_triton if norm_silu_triton.works(device) else None


class _GroupNormSilu(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, wide: bool
    ) -> Tensor:
        b, c = x.shape[:2]
        inner = x.to(weight.dtype) if wide else x
        scale, shift = (weight, bias) if rules.on_cpu(x.device) else (weight.to(inner), bias.to(inner))
        y, mean, deviation = ATEN.native_group_norm(inner, scale, shift, b, c, prod(x.shape[2:]), groups, eps)
        ctx.save_for_backward(x, weight, bias, mean, deviation)
        return F.silu(y, inplace=True).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight, bias, mean, inverse = ctx.saved_tensors  # once: a checkpoint gives them one time
        dtype = x.dtype
        b, c, *space = x.shape
        mean, inverse = (t.to(weight.dtype).unsqueeze(2) for t in (mean, inverse))  # (b, groups, 1)
        groups = mean.shape[1]
        grouped, flat, wide = (b, groups, c // groups), (b, c), (b, c, *(1 for _ in space))
        a = (inverse * weight.view(1, groups, -1)).reshape(flat)  # y = a x + shift
        shift = bias - (mean * a.view(grouped)).reshape(flat)
        x = x.to(weight.dtype)
        y = torch.addcmul(shift.view(wide), x, a.view(wide))
        dy = ATEN.silu_backward.grad_input(gradients[0].to(weight.dtype), y, grad_input=y)  # (b, c, *space)
        axes = tuple(range(2, x.dim()))
        sums, products = dy.sum(axes), (dy * x).sum(axes)  # (b, c), of dy and of dy x
        group_sums, group_products = ((each * weight).view(grouped).sum(2, keepdim=True) for each in (sums, products))
        count = c // groups * prod(space)
        slope = (group_sums * mean - group_products) * inverse**3 / count  # of x in dx, (b, groups, 1)
        constant = -slope * mean - group_sums * inverse / count
        each = (1, 1, c // groups)
        slope, constant = (t.repeat(each).view(wide) for t in (slope, constant))
        dx = dy.mul_(a.view(wide)).addcmul_(x, slope).add_(constant)
        centred = products.view(grouped) - sums.view(grouped) * mean
        dweight = (centred * inverse).reshape(flat).sum(0)
        return dx.to(dtype), dweight, sums.sum(0), None, None, None
