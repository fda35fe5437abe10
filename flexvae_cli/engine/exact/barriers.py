"""Where a layer needs all positions at once: statistics of a norm, and the keys and values of attention."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from flexvae_cli.engine.exact.activation import Activation

QUERIES, KEYS = 512, 2048  # attention's scores are computed in blocks of so many


class Statistics:
    """Mean and variance of each group over all positions, from one band after the other, in float64.

    Bands are merged as Chan, Golub and LeVeque (1979) do, which does not mind a mean far from zero.
    """

    def __init__(self, norm: nn.GroupNorm) -> None:
        self.norm = norm
        self.count = 0
        self.mean = torch.zeros(norm.num_groups, dtype=torch.float64)
        self.squares = torch.zeros(norm.num_groups, dtype=torch.float64)  # sums of squared deviations

    def add(self, band: Tensor) -> None:
        """Take in a band (1, c, ...)."""
        count = band.numel() // self.norm.num_groups
        for index, group in enumerate(band[0].chunk(self.norm.num_groups)):
            variance, mean = torch.var_mean(group.double(), correction=0)
            if band.is_meta:
                continue
            delta, total = mean.cpu() - self.mean[index], self.count + count
            self.mean[index] += delta * count / total
            self.squares[index] += variance.cpu() * count + delta.square() * self.count * count / total
        self.count += count

    def normalised(self, x: Tensor, norm: nn.GroupNorm) -> Tensor:
        """What the norm makes of a band.

        Args:
            x: (1, c, ...).
            norm: whose scale and shift to use.
        """
        per_group = x.shape[1] // norm.num_groups
        scale = (self.squares / max(1, self.count) + norm.eps).rsqrt().repeat_interleave(per_group).to(x.device)
        shift = -self.mean.repeat_interleave(per_group).to(x.device) * scale
        if norm.weight is not None:
            scale, shift = scale * norm.weight.double(), shift * norm.weight.double() + norm.bias.double()
        axes = (1, -1, *(1 for _ in x.shape[2:]))
        return torch.addcmul(shift.to(x.dtype).view(axes), x, scale.to(x.dtype).view(axes))


def attend(query: Tensor, keys: Activation, values: Activation, scale: float | None) -> Tensor:
    """softmax(query keys^T scale) values, block by block, as Rabe and Staats do (2021, arXiv:2112.05682).

    Args:
        query: (..., positions, c) of a band.
        keys, values: (..., all positions, c).
        scale: 1 / sqrt(c) where it is None.
    """
    query = query * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    return torch.cat([_attend(each, keys, values) for each in query.split(QUERIES, dim=-2)], dim=-2)


def _attend(query: Tensor, keys: Activation, values: Activation) -> Tensor:
    top, total, out = (torch.full_like(query[..., :1], each) for each in (-math.inf, 0.0, 0.0))
    for first, end in keys.bands(KEYS):
        key, value = keys.read(first, end).to(query.device), values.read(first, end).to(query.device)
        scores = query @ key.transpose(-2, -1)  # (..., queries, keys)
        higher = torch.maximum(top, scores.amax(-1, keepdim=True))
        weights = scores.sub_(higher).exp_()
        fading = (top - higher).exp_()
        total = total * fading + weights.sum(-1, keepdim=True)
        out = out * fading + weights @ value
        top = higher
    return out / total
