"""The blocks of the structure language in plain torch. Shapes: b samples, c channels, space = any axes, such as h w."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}  # axes -> torch's own
POOLS = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
Sizes = int | tuple[int, ...]


class ResidualBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), with a convolution of size 1 on the shortcut where channels differ."""

    flexvae_fuses = ("norm_silu", "terms")

    def __init__(self, in_channels: int, out_channels: int, axes: int = 2) -> None:
        super().__init__()
        convolution = CONVOLUTIONS[axes]
        self.norm_1 = nn.GroupNorm(32, in_channels)
        self.conv_1 = convolution(in_channels, out_channels, kernel_size=3, padding=1)
        self.norm_2 = nn.GroupNorm(32, out_channels)
        self.conv_2 = convolution(out_channels, out_channels, kernel_size=3, padding=1)
        same = in_channels == out_channels
        self.shortcut = nn.Identity() if same else convolution(in_channels, out_channels, kernel_size=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut, h = self.terms(x)
        return shortcut + self.last(h)

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


class AttentionBlock(nn.Module):
    """x + attention(norm(x)): every position attends to all, one head, four biased c x c projections."""

    flexvae_fuses = ("attend",)

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(32, channels)
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels)
        self.value = nn.Linear(channels, channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm(x).flatten(2).transpose(1, 2)  # (b, positions, c)
        # One head, written as an axis: the fused kernels take (b, heads, positions, c).
        query, key, value = (project(h)[:, None] for project in (self.query, self.key, self.value))
        h = self.out(self.attend(query, key, value)[:, 0])  # (b, positions, c)
        return x + h.transpose(1, 2).reshape(x.shape)

    @staticmethod
    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Attention, (b, heads, positions, c) each; whoever runs the net may put a faster form in its place."""
        return F.scaled_dot_product_attention(query, key, value)


class MaxPool(nn.Module):
    """torch's max pooling for as many axes as the data has."""

    def __init__(self, kernel_size: Sizes, stride: Sizes | None, padding: Sizes) -> None:
        super().__init__()
        self.kernel_size, self.stride, self.padding = kernel_size, stride, padding

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return POOLS[x.dim() - 2](x, self.kernel_size, self.stride, self.padding)

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"
