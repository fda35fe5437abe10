"""The two blocks of the structure language in plain torch. Shapes: b samples, c channels, h x w positions."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class ResidualBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), with a 1x1 convolution on the shortcut where the channels differ."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm_1 = nn.GroupNorm(32, in_channels)
        self.conv_1 = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1)
        self.norm_2 = nn.GroupNorm(32, out_channels)
        self.conv_2 = nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1)
        same = in_channels == out_channels
        self.shortcut = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, kernel_size=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.conv_1(F.silu(self.norm_1(x)))  # (b, out_channels, h, w)
        h = self.conv_2(F.silu(self.norm_2(h)))
        return self.shortcut(x) + h


class AttentionBlock(nn.Module):
    """x + attention(norm(x)): every position attends to all, one head, four biased c x c projections."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(32, channels)
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels)
        self.value = nn.Linear(channels, channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm(x).flatten(2).transpose(1, 2)  # (b, h*w, c)
        # One head, written as an axis: the fused kernels take (b, heads, positions, c).
        query, key, value = (project(h)[:, None] for project in (self.query, self.key, self.value))
        h = self.out(F.scaled_dot_product_attention(query, key, value)[:, 0])  # (b, h*w, c)
        return x + h.transpose(1, 2).reshape(x.shape)
