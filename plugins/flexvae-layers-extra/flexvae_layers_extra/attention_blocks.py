"""Attention in plain torch. Shapes: b samples, c channels, space = any axes, such as h w."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from flexvae_layers_extra.blocks import CONVOLUTIONS
from flexvae_layers_extra.precision import exact


class AttentionBlock(nn.Module):
    """x + attention(norm(x)): every position attends to all, with four biased c x c projections."""

    flexvae_fuses = ("attend",)

    def __init__(self, channels: int, num_heads: int, num_groups: int, eps: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.GroupNorm(num_groups, channels, eps)
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels)
        self.value = nn.Linear(channels, channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm(x).flatten(2).transpose(1, 2)  # (b, positions, c)
        query, key, value = (self._heads(project(h)) for project in (self.query, self.key, self.value))
        h = self.attend(query, key, value)  # (b, heads, positions, c / heads)
        h = self.out(h.transpose(1, 2).flatten(2))  # (b, positions, c)
        return x + h.transpose(1, 2).reshape(x.shape)

    @staticmethod
    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Attention, (b, heads, positions, c) each; whoever runs the net may put a faster form in its place."""
        return F.scaled_dot_product_attention(query, key, value)

    def _heads(self, h: torch.Tensor) -> torch.Tensor:
        return h.unflatten(2, (self.num_heads, -1)).transpose(1, 2)  # (b, heads, positions, c / heads)


class LinearAttention(nn.Module):
    """Attention with relu(query) . relu(key) for weights, whose cost grows with the positions, not their square."""

    def __init__(self, channels: int, head_dim: int, kernel_sizes: tuple[int, ...], eps: float, axes: int = 2) -> None:
        super().__init__()
        convolution = CONVOLUTIONS[axes]
        self.head_dim, self.eps = head_dim, eps
        self.query = convolution(channels, channels, kernel_size=1, bias=False)
        self.key = convolution(channels, channels, kernel_size=1, bias=False)
        self.value = convolution(channels, channels, kernel_size=1, bias=False)
        self.scales = nn.ModuleList(Surroundings(3 * channels, head_dim, k, axes) for k in kernel_sizes)
        self.out = convolution((1 + len(kernel_sizes)) * channels, channels, kernel_size=1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        triple = torch.cat([self.query(x), self.key(x), self.value(x)], dim=1)  # (b, 3 c, *space)
        triples = torch.cat([triple, *(scale(triple) for scale in self.scales)], dim=1)
        # Heads are cut across the channels in this order, as the published weights have it.
        query, key, value = triples.flatten(2).unflatten(1, (-1, 3 * self.head_dim)).chunk(3, dim=2)
        mixed = self._mix(query, key, value).to(x.dtype)  # (b, heads, head_dim, positions)
        out: torch.Tensor = self.out(mixed.flatten(1, 2).unflatten(2, x.shape[2:]))
        return out

    def _mix(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """The mean of the values, weighted by relu(query) . relu(key), in float32: the sums run over all positions."""
        with exact(query.device):
            query, key = F.relu(query.float()), F.relu(key.float())  # (b, heads, head_dim, positions)
            value = F.pad(value.float(), (0, 0, 0, 1), value=1.0)  # a row of ones: the sum of the weights
            sums = value @ key.transpose(2, 3) @ query  # (b, heads, head_dim + 1, positions)
            return sums[:, :, :-1] / (sums[:, :, -1:] + self.eps)


class Surroundings(nn.Module):
    """Each channel's neighbourhood, then a mix of the channels of a head: a depthwise and a grouped 1x1 convolution."""

    def __init__(self, channels: int, head_dim: int, kernel_size: int, axes: int) -> None:
        super().__init__()
        convolution = CONVOLUTIONS[axes]
        self.depthwise = convolution(
            channels, channels, kernel_size, padding=kernel_size // 2, groups=channels, bias=False
        )
        self.pointwise = convolution(channels, channels, kernel_size=1, groups=channels // head_dim, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mixed: torch.Tensor = self.pointwise(self.depthwise(x))
        return mixed


class SqueezeExcitation(nn.Module):
    """x * sigmoid(expand(relu(reduce(mean)))), the mean of each channel over its positions."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.reduce = nn.Linear(channels, hidden)
        self.expand = nn.Linear(hidden, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gates = torch.sigmoid(self.expand(F.relu(self.reduce(x.flatten(2).mean(2)))))  # (b, c)
        return x * gates.reshape(*gates.shape, *[1] * (x.dim() - 2)).to(x.dtype)
