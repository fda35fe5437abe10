"""Activations with a learned frequency, in plain torch. Shapes: b samples, c channels, space = any axes."""

from __future__ import annotations

import torch
from torch import nn


class Snake(nn.Module):
    """x + sin^2(alpha x) / alpha."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        alpha = per_channel(self.alpha, x)
        return x + torch.sin(alpha * x).square() / (alpha + 1e-9)


class SnakeBeta(nn.Module):
    """x + sin^2(exp(alpha) x) / exp(beta)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(channels))
        self.beta = nn.Parameter(torch.zeros(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        waves = torch.sin(per_channel(self.alpha.exp(), x) * x).square()
        return x + waves / (per_channel(self.beta.exp(), x) + 1e-9)


def per_channel(values: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """One value for each channel, to go with x: (c,) -> (c, 1, ...)."""
    return values.reshape(-1, *[1] * (x.dim() - 2))
