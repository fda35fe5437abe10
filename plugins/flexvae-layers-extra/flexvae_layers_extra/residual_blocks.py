"""Residual blocks in plain torch. Shapes: b samples, c channels, space = any axes."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from flexvae_layers_extra.blocks import CONVOLUTIONS


class ResidualBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), with a convolution of size 1 on the shortcut where channels differ."""

    flexvae_fuses = ("norm_silu", "terms")

    def __init__(self, in_channels: int, out_channels: int, num_groups: int, eps: float, axes: int = 2) -> None:
        super().__init__()
        convolution = CONVOLUTIONS[axes]
        self.norm_1 = nn.GroupNorm(num_groups, in_channels, eps)
        self.conv_1 = convolution(in_channels, out_channels, kernel_size=3, padding=1)
        self.norm_2 = nn.GroupNorm(num_groups, out_channels, eps)
        self.conv_2 = convolution(out_channels, out_channels, kernel_size=3, padding=1)
        same = in_channels == out_channels
        self.shortcut = nn.Identity() if same else convolution(in_channels, out_channels, kernel_size=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut, h = self.terms(x)
        out: torch.Tensor = shortcut + self.last(h)
        return out

    def terms(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What is added, and what goes into the last convolution, (b, out_channels, *space) each."""
        h = self.conv_1(self.norm_silu(self.norm_1, x))
        return self.shortcut(x), self.norm_silu(self.norm_2, h)

    @property
    def last(self) -> nn.Module:
        """The last convolution: what follows the block may be computed together with it."""
        return self.conv_2

    @staticmethod
    def norm_silu(norm: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """silu(norm(x)); whoever runs the net may put a faster function in its place."""
        return F.silu(norm(x))


class TinyBlock(nn.Module):
    """relu(x + conv(relu(conv(relu(conv(x)))))), with a convolution of size 1 on the shortcut where channels differ."""

    def __init__(self, in_channels: int, out_channels: int, axes: int = 2) -> None:
        super().__init__()
        convolution = CONVOLUTIONS[axes]
        self.conv_1 = convolution(in_channels, out_channels, kernel_size=3, padding=1)
        self.conv_2 = convolution(out_channels, out_channels, kernel_size=3, padding=1)
        self.conv_3 = convolution(out_channels, out_channels, kernel_size=3, padding=1)
        same = in_channels == out_channels
        self.shortcut = nn.Identity() if same else convolution(in_channels, out_channels, kernel_size=1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = F.relu(self.conv_1(x))  # (b, out_channels, *space)
        h = self.conv_3(F.relu(self.conv_2(h)))
        return F.relu(self.shortcut(x) + h)


class GatedBottleneck(nn.Module):
    """Channels up to twice the width, silu, depthwise of size 3, value * silu(gate), channels down."""

    def __init__(self, channels: int, expansion: int, axes: int = 2) -> None:
        super().__init__()
        convolution = CONVOLUTIONS[axes]
        wide = expansion * channels
        self.expand = convolution(channels, 2 * wide, kernel_size=1)
        self.depthwise = convolution(2 * wide, 2 * wide, kernel_size=3, padding=1, groups=2 * wide)
        self.project = convolution(wide, channels, kernel_size=1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        value, gate = self.depthwise(F.silu(self.expand(x))).chunk(2, dim=1)  # (b, wide, *space) each
        projected: torch.Tensor = self.project(value * F.silu(gate))
        return projected
