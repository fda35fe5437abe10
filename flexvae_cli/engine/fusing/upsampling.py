"""Nearest upsampling and the convolution behind it, as one transposed convolution at the low resolution.

Upsampling by s repeats each position s times, so a window of the convolution sees few positions, many times. Taps that
see the same one add up. Along one axis with kernel w of size k and padding p the pair is the transposed convolution of
stride s, padding k - 1 - p and kernel

    W[j] = sum of w[t] over the taps t with 0 <= j - (k - 1 - t) < s,    j = 0 .. s + k - 2,

that is s + k - 1 taps for s outputs instead of s * k. Where s > k and the size is kept, 2 p = k - 1, the s outputs of
one position are k different ones, of which the middle one comes s - k + 1 times: the stride is then k, and that one is
repeated.
"""

from __future__ import annotations

from itertools import product
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flexvae_cli.engine import rules
from flexvae_cli.engine.fusing.fusion import Convolution, Fusion, is_convolution, sizes

TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
PADDINGS = ("zeros", "replicate", "circular")  # these commute with repeating; reflection does not


class UpsampledConvolution(Fusion):
    """The pair as phase kernels, see above.

    Args:
        upsampling: nearest, by whole factors.
        convolution: of stride 1.
        factors: per axis.
        padding: of the convolution, per axis.
    """

    what = "upsampling and convolution as phase kernels"

    def __init__(
        self,
        upsampling: nn.Module,
        convolution: Convolution,
        factors: tuple[int, ...],
        padding: tuple[int, ...],
        *,
        always: bool = False,
    ) -> None:
        super().__init__(upsampling, convolution, always=always)
        kernel = convolution.kernel_size
        self.mode = convolution.padding_mode
        # Padding in front of the upsampling, in low positions; what is too much is cut by the transposed convolution.
        self.low = tuple(0 if self.mode == "zeros" else -(-p // s) for p, s in zip(padding, factors, strict=True))
        each = zip(factors, kernel, padding, strict=True)
        self.repeats = tuple(s - k + 1 if s > k and 2 * p == k - 1 and self.mode == "zeros" else 1 for s, k, p in each)
        self.strides = tuple(k if r > 1 else s for s, k, r in zip(factors, kernel, self.repeats, strict=True))
        ends = zip(kernel, padding, factors, self.low, strict=True)
        self.cut = tuple(k - 1 - p + s * low for k, p, s, low in ends)
        self.factors, self.middle = factors, padding
        self.kernel = tuple(s + k - 1 for s, k in zip(self.strides, kernel, strict=True))
        self.spread = spread(kernel, self.strides).to(convolution.weight.device)

    @classmethod
    def of(cls, first: nn.Module, second: nn.Module, *, always: bool = False) -> UpsampledConvolution | None:
        """The fusion of two layers, where they are such a pair."""
        if type(first) is not nn.Upsample or first.mode != "nearest" or first.size is not None:
            return None
        if not is_convolution(second) or not isinstance(second, Convolution):
            return None
        axes = len(second.kernel_size)
        factors, padding = sizes(first.scale_factor, axes), sizes(second.padding, axes)
        if factors is None or padding is None or second.padding_mode not in PADDINGS:
            return None
        if any(n != 1 for n in (*second.stride, *second.dilation)):
            return None
        if any(p > k - 1 for p, k in zip(padding, second.kernel_size, strict=True)):  # rows that see nothing at all
            return None
        return cls(first, second, factors, padding, always=always)

    def pays(self, x: Tensor) -> bool:
        taps = (prod(self.factors) * prod(self.layers[1].kernel_size), prod(self.kernel))  # type: ignore[arg-type]
        return rules.phase_kernels_pay(x.device, *taps, positions=x.shape[0] * prod(x.shape[2:]))

    def together(self, x: Tensor) -> Tensor:
        convolution = self.layers[1]
        assert isinstance(convolution, Convolution)
        if any(self.low):
            amounts = [n for low in reversed(self.low) for n in (low, low)]
            x = F.pad(x, amounts, mode=self.mode)
        kernel, groups = self._kernel(convolution.weight), convolution.groups
        out: Tensor = TRANSPOSED[len(self.kernel)](
            x, kernel, convolution.bias, stride=self.strides, padding=self.cut, groups=groups
        )
        return repeated(out, self.strides, self.middle, self.repeats)

    def _kernel(self, weight: Tensor) -> Tensor:
        """(out, in / groups, *k) -> (in, out / groups, *kernel), in the weight's own precision."""
        if self.spread.device != weight.device or self.spread.dtype != weight.dtype:  # the net was moved
            self.spread = spread(self.layers[1].kernel_size, self.strides).to(weight)  # type: ignore[arg-type]
        with torch.autocast(rules.kind(weight.device), enabled=False):
            wide = weight.flatten(2) @ self.spread  # (out, in / groups, kernel)
        swapped = wide.unflatten(0, (self.layers[1].groups, -1)).transpose(1, 2).flatten(0, 1)  # type: ignore[arg-type]
        return swapped.unflatten(2, self.kernel)


def spread(kernel: tuple[int, ...], strides: tuple[int, ...]) -> Tensor:
    """Which taps of the transposed convolution a tap adds to, (prod k, prod (s + k - 1)), of 0 and 1."""
    matrix = torch.ones(1, 1, device="cpu")
    for k, s in zip(kernel, strides, strict=True):
        axis = torch.zeros(k, s + k - 1, device="cpu")
        for tap, phase in product(range(k), range(s)):
            axis[tap, k - 1 - tap + phase] = 1.0
        matrix = torch.kron(matrix, axis)
    return matrix


def repeated(x: Tensor, strides: tuple[int, ...], middle: tuple[int, ...], repeats: tuple[int, ...]) -> Tensor:
    """Repeat the middle phase of each position along each axis; the layout in memory is kept.

    Args:
        x: (b, c, *space) whose every axis holds the phases of position after position.
        strides: phases of a position, per axis.
        middle: which of them is repeated.
        repeats: how often it is wanted.
    """
    if all(n == 1 for n in repeats):
        return x
    last = x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    x = x.movedim(1, -1) if last else x
    for axis, (phases, at, times) in enumerate(zip(strides, middle, repeats, strict=True), 1 if last else 2):
        if times == 1:
            continue
        parts = x.unflatten(axis, (-1, phases)).split([at, 1, phases - at - 1], axis + 1)
        x = torch.cat([parts[0], *[parts[1]] * times, parts[2]], axis + 1).flatten(axis, axis + 1)
    return x.movedim(-1, 1) if last else x
