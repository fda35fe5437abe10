"""The distance of two clouds of features."""

from __future__ import annotations

import torch
from torch import Tensor


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """The squared Frechet distance of two normals, with the means and covariances of rows (n, d) and (m, d), n, m > 1.

    |mean_a - mean_b|^2 + trace(S_a + S_b - 2 (S_a S_b)^(1/2)), with covariances over n - 1 (arXiv:1706.08500). It is
    biased upwards, the more so the fewer rows there are.
    """
    a, b = a.double(), b.double()
    apart = a.mean(0) - b.mean(0)
    # S = X'X, so the nonzero eigenvalues of S_a S_b are the squared singular values of X_a X_b': no root of a matrix
    x, y = ((each - each.mean(0)) / (len(each) - 1) ** 0.5 for each in (a, b))
    common = _triangle(x) @ _triangle(y).T
    root = torch.linalg.svdvals(common).sum()
    distance = apart.square().sum() + x.square().sum() + y.square().sum() - 2 * root
    return max(0.0, distance.item())


def _triangle(x: Tensor) -> Tensor:
    """A matrix of no more rows than columns with the same X'X."""
    return x if len(x) <= x.shape[1] else torch.linalg.qr(x, mode="r").R
