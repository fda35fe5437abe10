"""The layers that torch has not, in plain torch. Shapes: b samples, c channels, space = any axes, such as h w."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class BatchNorm(nn.Module):
    """nn.BatchNorm2d for data of any number of axes: statistics do not mind how the positions are laid out."""

    def __init__(self, num_features: int, eps: float, momentum: float, affine: bool) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(num_features, eps, momentum, affine)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        planes = x[..., None] if x.dim() == 3 else x.flatten(3)  # (b, c, h, w); two axes pass as they are
        normalised: torch.Tensor = self.norm(planes)
        return normalised.reshape(x.shape)


class ChannelNorm(nn.Module):
    """Layer normalisation over the channels of each position."""

    def __init__(self, num_channels: int, eps: float, affine: bool = True) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(num_channels, eps, affine)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normalised: torch.Tensor = self.norm(x.movedim(1, -1))  # (b, *space, c)
        return normalised.movedim(-1, 1)


class Shuffle(nn.Module):
    """nn.PixelShuffle for data of any number of axes: (b, c * r^axes, *space) -> (b, c, *(n * r))."""

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        r, axes, (b, c, *space) = self.factor, x.dim() - 2, x.shape
        c = c // r**axes
        parts = x.reshape(b, c, *[r] * axes, *space)  # (b, c, r, r, h, w)
        pairs = [axis for i in range(axes) for axis in (2 + axes + i, 2 + i)]
        return parts.permute(0, 1, *pairs).reshape(b, c, *(n * r for n in space))  # (b, c, h r, w r)


class Unshuffle(nn.Module):
    """nn.PixelUnshuffle for data of any number of axes: (b, c, *(n * r)) -> (b, c * r^axes, *space)."""

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        r, axes, (b, c, *space) = self.factor, x.dim() - 2, x.shape
        parts = x.reshape(b, c, *(n for size in space for n in (size // r, r)))  # (b, c, h, r, w, r)
        phases, positions = range(3, 3 + 2 * axes, 2), range(2, 2 + 2 * axes, 2)
        return parts.permute(0, 1, *phases, *positions).reshape(b, c * r**axes, *(n // r for n in space))


class ConvNeXtBlock(nn.Module):
    """x + scale * project(gelu(expand(norm(depthwise(x)))))."""

    def __init__(self, channels: int, kernel_size: int, expansion: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, kernel_size, padding=kernel_size // 2, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.expand = nn.Linear(channels, expansion * channels)
        self.project = nn.Linear(expansion * channels, channels)
        self.scale = nn.Parameter(torch.full((channels,), 1e-6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h: torch.Tensor = self.norm(self.depthwise(x).movedim(1, -1))  # (b, h, w, c)
        h = self.scale * self.project(F.gelu(self.expand(h)))
        return x + h.movedim(-1, 1)
