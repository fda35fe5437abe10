"""Attention over all positions, block by block, keys and values from files."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flexvae_cli.engine.exact.activation import Activation

QUERIES, KEYS = 512, 2048  # scores are computed in blocks of so many


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
