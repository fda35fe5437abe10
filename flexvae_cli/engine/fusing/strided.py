"""A residual block and the strided convolution behind it: the block's last convolution and the strided one are one.

Nothing stands between the two but a sum, so their kernels compose: sizes k and l give one of size k + l - 1, applied at
the stride; what the sum adds goes through the strided convolution alone. The strided one must not pad: what it would
add around the block's output is not what the block's convolution makes of the zeros around its own input.

A block takes part if it offers `terms`, see `offers`: `terms(x)` gives what is added and what goes into the last
convolution, and `last` is that convolution. Its output is then `added + last(h)`.
"""

from __future__ import annotations

from math import prod
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flexvae_cli.engine import rules
from flexvae_cli.engine.fusing.fusion import Convolution, Fusion, is_convolution, offers, sizes
from flexvae_cli.engine.fusing.upsampling import TRANSPOSED

PLAIN = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


@runtime_checkable
class Sum(Protocol):
    """A block whose output is a sum that ends in a convolution."""

    @property
    def last(self) -> nn.Module: ...

    def terms(self, x: Tensor) -> tuple[Tensor, Tensor]: ...


class StridedSum(Fusion):
    """The pair with composed kernels, see above."""

    what = "the block's last convolution and the strided one as one"

    @classmethod
    def of(cls, first: nn.Module, second: nn.Module, *, always: bool = False) -> StridedSum | None:
        """The fusion of two layers, where they are such a pair."""
        if not offers(first, "terms") or not isinstance(first, Sum):
            return None
        if not is_convolution(second) or not is_convolution(first.last):
            return None
        last = first.last
        if not isinstance(second, Convolution) or not isinstance(last, Convolution):
            return None
        axes = len(second.kernel_size)
        if len(last.kernel_size) != axes or sizes(last.padding, axes) is None or last.padding_mode != "zeros":
            return None
        if sizes(second.padding, axes) != (0,) * axes or all(n == 1 for n in second.stride):
            return None
        if any(n != 1 for n in (*last.stride, *last.dilation, *second.dilation, last.groups, second.groups)):
            return None
        return cls(first, second, inner=(last,), always=always)

    def pays(self, x: Tensor) -> bool:
        last, second = self._convolutions()
        space = [
            n + 2 * p - k + 1
            for n, p, k in zip(x.shape[2:], sizes(last.padding, x.dim() - 2) or (), last.kernel_size, strict=True)
        ]
        small = [max(0, n - k) // s + 1 for n, k, s in zip(space, second.kernel_size, second.stride, strict=True)]
        return rules.composing_pays(
            x.device,
            (last.in_channels, second.in_channels, second.out_channels),
            (prod(last.kernel_size), prod(second.kernel_size), prod(self._kernel_size())),
            (x.shape[0] * prod(space), x.shape[0] * prod(small)),
        )

    def together(self, x: Tensor) -> Tensor:
        block, (last, second) = self.layers[0], self._convolutions()
        assert isinstance(block, Sum)
        added, h = block.terms(x)
        convolve, stride = PLAIN[h.dim() - 2], second.stride
        kernel, bias = self._composed(last, second)
        joint: Tensor = convolve(h, kernel, bias, stride=stride, padding=last.padding)  # type: ignore[arg-type]
        alone: Tensor = convolve(added, second.weight, stride=stride)  # type: ignore[arg-type]
        return alone + joint

    def _convolutions(self) -> tuple[Convolution, Convolution]:
        last, second = self.inner[0], self.layers[1]
        assert isinstance(last, Convolution)
        assert isinstance(second, Convolution)
        return last, second

    def _kernel_size(self) -> tuple[int, ...]:
        last, second = self._convolutions()
        return tuple(k + n - 1 for k, n in zip(last.kernel_size, second.kernel_size, strict=True))

    @staticmethod
    def _composed(last: Convolution, second: Convolution) -> tuple[Tensor, Tensor | None]:
        """The kernel (out, in, *size) of one after the other, and its bias, in the weights' own precision."""
        inner, outer = last.weight, second.weight
        with torch.autocast(inner.device.type, enabled=False):
            # Every tap of the outer kernel spreads the inner one: a transposed convolution of it, input by input.
            kernel = TRANSPOSED[inner.dim() - 2](inner.transpose(0, 1), outer.transpose(0, 1)).transpose(0, 1)
            bias = second.bias
            if last.bias is not None:
                passed = outer.flatten(2).sum(2) @ last.bias
                bias = passed if bias is None else bias + passed
        return kernel, bias
