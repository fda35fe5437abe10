"""Residual blocks in plain torch. Shapes: b samples, c channels, h x w positions."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class ResidualBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), with a 1x1 convolution on the shortcut where the channels differ."""

    def __init__(self, in_channels: int, out_channels: int, num_groups: int, eps: float) -> None:
        super().__init__()
        self.norm_1 = nn.GroupNorm(num_groups, in_channels, eps)
        self.conv_1 = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1)
        self.norm_2 = nn.GroupNorm(num_groups, out_channels, eps)
        self.conv_2 = nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1)
        same = in_channels == out_channels
        self.shortcut = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, kernel_size=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.conv_1(F.silu(self.norm_1(x)))  # (b, out_channels, h, w)
        h = self.conv_2(F.silu(self.norm_2(h)))
        shortcut: torch.Tensor = self.shortcut(x)
        return shortcut + h


class TinyBlock(nn.Module):
    """relu(x + conv(relu(conv(relu(conv(x)))))), with a 1x1 convolution on the shortcut where the channels differ."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv_1 = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1)
        self.conv_2 = nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1)
        self.conv_3 = nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1)
        same = in_channels == out_channels
        self.shortcut = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, kernel_size=1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = F.relu(self.conv_1(x))  # (b, out_channels, h, w)
        h = self.conv_3(F.relu(self.conv_2(h)))
        return F.relu(self.shortcut(x) + h)


class GatedBottleneck(nn.Module):
    """1x1 up to twice the width, silu, depthwise 3x3, value * silu(gate), 1x1 down."""

    def __init__(self, channels: int, expansion: int) -> None:
        super().__init__()
        wide = expansion * channels
        self.expand = nn.Conv2d(channels, 2 * wide, kernel_size=1)
        self.depthwise = nn.Conv2d(2 * wide, 2 * wide, kernel_size=3, padding=1, groups=2 * wide)
        self.project = nn.Conv2d(wide, channels, kernel_size=1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        value, gate = self.depthwise(F.silu(self.expand(x))).chunk(2, dim=1)  # (b, wide, h, w) each
        projected: torch.Tensor = self.project(value * F.silu(gate))
        return projected
