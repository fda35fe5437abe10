"""Transformer blocks in plain torch. Shapes: b samples, c channels, h x w or any other positions."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class TransformerBlock(nn.Module):
    """x + mix(norm(x)), then x + narrow(gelu(widen(norm(x)))), computed with channels last."""

    def __init__(self, channels: int, expansion: int, eps: float, mix: nn.Module) -> None:
        super().__init__()
        self.norm_1 = nn.LayerNorm(channels, eps)
        self.mix = mix
        self.norm_2 = nn.LayerNorm(channels, eps)
        self.widen = nn.Linear(channels, expansion * channels)
        self.narrow = nn.Linear(expansion * channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = x.movedim(1, -1)  # (b, *space, c)
        h = h + self.mix(self.norm_1(h))
        h = h + self.narrow(F.gelu(self.widen(self.norm_2(h))))
        return h.movedim(-1, 1)


class GlobalAttention(nn.Module):
    """Every position attends to all: (b, *space, c) to the same."""

    def __init__(self, channels: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.project_in = nn.Linear(channels, 3 * channels)
        self.project_out = nn.Linear(channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value = heads(self.project_in(x.flatten(1, -2)), self.num_heads)  # (b, heads, positions, c / heads)
        h = F.scaled_dot_product_attention(query, key, value)
        out: torch.Tensor = self.project_out(h.transpose(-3, -2).flatten(-2))
        return out.reshape(x.shape)


class WindowAttention(nn.Module):
    """Every position attends to its window: (b, h, w, c) to the same; the windows are moved by `shift`."""

    def __init__(self, channels: int, num_heads: int, window_size: int, shift: int) -> None:
        super().__init__()
        self.num_heads, self.window_size, self.shift = num_heads, window_size, shift
        self.project_in = nn.Linear(channels, 3 * channels)
        self.project_out = nn.Linear(channels, channels)
        self.bias = nn.Parameter(torch.empty(num_heads, 2 * window_size - 1, 2 * window_size - 1))
        nn.init.trunc_normal_(self.bias, std=0.02)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[1:3]
        # A single window sees its whole axis as it is.
        shifts = [self.shift if n > self.window_size else 0 for n in (height, width)]
        moved = x.roll([-n for n in shifts], dims=(1, 2))
        windows = self._windows(moved)  # (b, windows, positions, c)
        query, key, value = heads(self.project_in(windows), self.num_heads)
        bias = self._bias().to(query.dtype)  # (heads, positions, positions)
        if any(shifts):
            bias = bias.masked_fill(self._strangers(height, width, shifts, x.device)[:, None], float("-inf"))
        h = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        out = self.project_out(h.transpose(-3, -2).flatten(-2))  # (b, windows, positions, c)
        size = self.window_size
        out = out.reshape(len(x), height // size, width // size, size, size, -1).transpose(2, 3)
        return out.reshape(x.shape).roll(shifts, dims=(1, 2))

    def _windows(self, x: torch.Tensor) -> torch.Tensor:
        """(b, h, w, c) -> (b, windows, positions of a window, c)."""
        (b, height, width, c), size = x.shape, self.window_size
        cut = x.reshape(b, height // size, size, width // size, size, c)
        return cut.transpose(2, 3).reshape(b, -1, size * size, c)

    def _bias(self) -> torch.Tensor:
        """What each head adds for two positions of a window: (heads, positions, positions)."""
        offset = torch.arange(self.window_size, device=self.bias.device)
        offset = offset[:, None] - offset + self.window_size - 1  # (size, size), from 0
        rows, columns = offset[:, None, :, None], offset[None, :, None, :]
        return self.bias[:, rows, columns].flatten(3).flatten(1, 2)

    def _strangers(self, height: int, width: int, shifts: list[int], device: torch.device) -> torch.Tensor:
        """Which positions of a window come from opposite borders: (windows, positions, positions)."""
        rows, columns = (
            torch.arange(n, device=device) >= n - shift for n, shift in zip((height, width), shifts, strict=True)
        )
        side = 2 * rows[:, None] + columns  # (h, w)
        sides = self._windows(side[None, :, :, None])[0, :, :, 0]  # (windows, positions)
        return sides[:, :, None] != sides[:, None, :]


def heads(projected: torch.Tensor, num_heads: int) -> tuple[torch.Tensor, ...]:
    """(..., positions, 3 c) -> query, key and value, each (..., heads, positions, c / heads)."""
    split = projected.unflatten(-1, (3, num_heads, -1)).movedim(-3, 0).transpose(-3, -2)
    return split.unbind(0)


class SinusoidalPositions(nn.Module):
    """x + sines and cosines of each position; every axis has its share of the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        axes = x.dim() - 2
        count = self.channels // (2 * axes)  # frequencies of an axis
        steps = torch.arange(count, device=x.device, dtype=torch.float32) / max(1, count)
        frequencies = 10_000.0**-steps
        parts = []
        for axis in range(axes):
            angles = frequencies[:, None] * torch.arange(x.shape[2 + axis], device=x.device)  # (count, n)
            waves = torch.cat([angles.sin(), angles.cos()])  # (2 count, n)
            parts.append(
                waves.reshape(2 * count, *(-1 if a == axis else 1 for a in range(axes))).expand(-1, *x.shape[2:])
            )
        return x + torch.cat(parts).to(x.dtype)
