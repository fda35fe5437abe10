"""What a norm needs to know of all positions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

PART = 1 << 16  # numbers that are looked at twice, while they are in a core's cache


class Moments:
    """Mean and variance of each channel over all positions, from one band after the other.

    Parts that fit into a core's cache are looked at twice, for their mean and for what deviates from it, and merged in
    float64 as Chan, Golub and LeVeque (1979) do, which does not mind a mean far from zero.
    """

    def __init__(self, channels: int) -> None:
        self.count = 0  # positions
        self.mean = torch.zeros(channels, dtype=torch.float64)
        self.squares = torch.zeros(channels, dtype=torch.float64)  # sums of squared deviations

    def add(self, band: Tensor) -> None:
        """Take in positions (..., c)."""
        positions = band.reshape(-1, band.shape[-1])
        parts = positions.split(max(1, PART // band.shape[-1]))
        for part in parts[:1] if band.is_meta else parts:
            near = part.mean(0)
            deviations = part - near
            rest = deviations.mean(0)
            squares = deviations.square_().sum(0)
            if not band.is_meta:
                self._merge(len(part), near.double().cpu(), rest.double().cpu(), squares.double().cpu())

    def _merge(self, count: int, near: Tensor, rest: Tensor, squares: Tensor) -> None:
        """Take in so many positions of mean `near + rest`, with sums of squared deviations from `near`."""
        delta, total = near + rest - self.mean, self.count + count
        self.mean += delta * count / total
        self.squares += squares - count * rest.square() + delta.square() * self.count * count / total
        self.count = total

    def normalised(self, x: Tensor, norm: nn.GroupNorm) -> Tensor:
        """What a norm makes of a band (1, c, ...) of what was taken in."""
        means = self.mean.view(norm.num_groups, -1)  # (groups, channels of each)
        mean = means.mean(1, keepdim=True)
        squares = self.squares.view(means.shape).mean(1, keepdim=True) / max(1, self.count)
        variance = squares + (means - mean).square().mean(1, keepdim=True)
        scale = (variance + norm.eps).rsqrt().expand(means.shape).flatten().to(x.device)
        shift = -mean.expand(means.shape).flatten().to(x.device) * scale
        if norm.weight is not None:
            scale, shift = scale * norm.weight.double(), shift * norm.weight.double() + norm.bias.double()
        axes = (1, -1, *(1 for _ in x.shape[2:]))
        return torch.addcmul(shift.to(x.dtype).view(axes), x, scale.to(x.dtype).view(axes))
