"""Fixed filters in plain torch. Shapes: b samples, c channels, space = any axes, such as h w."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class Blur(nn.Module):
    """The binomial filter, as so many means of two neighbours: they need no weights that a file would have to hold."""

    def __init__(self, kernel_size: int, stride: int, padding_mode: str) -> None:
        super().__init__()
        self.kernel_size, self.stride, self.padding_mode = kernel_size, stride, padding_mode

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        before, behind = (self.kernel_size - 1) // 2, self.kernel_size // 2
        h = F.pad(x, (before, behind, before, behind), mode=self.padding_mode)
        for _ in range(self.kernel_size - 2):
            h = F.avg_pool2d(h, 2, 1)
        return F.avg_pool2d(h, 2, self.stride)  # (b, c, (h - 1) // stride + 1, ...)


class HaarDown(nn.Module):
    """Sums and differences of neighbours along each axis, over sqrt(2): (b, c, *(2 n)) -> (b, 2^axes c, *n)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for axis in range(x.dim() - 1, 1, -1):
            even, odd = x.unflatten(axis, (-1, 2)).unbind(axis + 1)
            x = torch.cat([even + odd, even - odd], dim=1) * 0.5**0.5
        return x


class HaarUp(nn.Module):
    """The way back: (b, 2^axes c, *n) -> (b, c, *(2 n))."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for axis in range(2, x.dim()):
            mean, difference = x.chunk(2, dim=1)
            pairs = torch.stack([mean + difference, mean - difference], dim=axis + 1) * 0.5**0.5
            x = pairs.flatten(axis, axis + 1)
        return x
