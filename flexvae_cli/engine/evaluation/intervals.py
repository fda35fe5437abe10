"""How far a mean over images can be trusted: bootstrap intervals, and a test for pairs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

RESAMPLES = 10_000
SEED = 0  # of the resampling, so that equal values have equal intervals
LEVEL = 0.95
DRAWN = 1 << 22  # most indices held at a time
MOST_EXACT = 25  # pairs; beyond, the normal approximation is good to a few per cent of p


def bootstrap_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % interval of the mean by the percentile bootstrap (Efron, 1979); None for fewer than two values.

    The values are drawn 10,000 times with replacement, always with the same seed.
    """
    if len(values) < 2:
        return None
    given = np.asarray(values, np.float64)  # (n,)
    generator = np.random.default_rng(SEED)
    means = np.empty(RESAMPLES)
    step = max(1, DRAWN // len(given))
    for start in range(0, RESAMPLES, step):
        drawn = generator.integers(0, len(given), (min(step, RESAMPLES - start), len(given)))
        means[start : start + step] = given[drawn].mean(axis=1)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def signed_rank_p(differences: Sequence[float]) -> float:
    """The two-sided p-value of Wilcoxon's signed-rank test (1945) that differences are symmetric about 0.

    Zeros are left out, equal sizes share their mean rank. Up to 25 differences the distribution over all signs is
    counted out, ties included; beyond it is taken for normal, with corrections for ties and continuity. Infinite
    differences count as the largest. 1 where nothing is left.
    """
    kept = [d for d in differences if d != 0]
    doubled = _doubled_ranks([abs(d) for d in kept])
    positive = sum(rank for rank, d in zip(doubled, kept, strict=True) if d > 0)
    if not kept:
        return 1.0
    return _exact_p(doubled, positive) if len(kept) <= MOST_EXACT else _normal_p(doubled, positive)


def _doubled_ranks(sizes: Sequence[float]) -> list[int]:
    """Twice the mean rank of every size, counted from 1: a whole number even where sizes are equal."""
    ordered = sorted(sizes)
    first = {size: index for index, size in reversed(list(enumerate(ordered)))}
    last = {size: index for index, size in enumerate(ordered)}
    return [first[size] + last[size] + 2 for size in sizes]


def _exact_p(doubled: Sequence[int], positive: int) -> float:
    """All 2^n choices of signs, counted by their sum of positive ranks."""
    ways = [1] + [0] * sum(doubled)
    for rank in doubled:
        ways = [n + (ways[total - rank] if total >= rank else 0) for total, n in enumerate(ways)]
    tail = min(sum(ways[: positive + 1]), sum(ways[positive:]))
    return float(min(1.0, 2 * tail / 2 ** len(doubled)))


def _normal_p(doubled: Sequence[int], positive: int) -> float:
    # under the null each rank r counts with probability 1/2: mean sum(r)/2, variance sum(r^2)/4, ties included
    mean = sum(doubled) / 4
    deviation = math.sqrt(sum(rank * rank for rank in doubled) / 16)
    return math.erfc(max(0.0, abs(positive / 2 - mean) - 0.5) / deviation / math.sqrt(2))
