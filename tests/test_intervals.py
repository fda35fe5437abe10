"""Bootstrap intervals and Wilcoxon's test, against values worked out by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from flexvae_cli.engine.evaluation import intervals
from flexvae_cli.engine.evaluation.intervals import bootstrap_interval, signed_rank_p

DARWIN = [6, 8, 14, 16, 23, 24, 28, 29, 41, -48, 49, 56, 60, -67, 75]  # heights of plants, in eighths of an inch


def test_the_interval_is_that_of_all_resamples_where_they_can_be_counted():
    # of 0, 0, 0, 1 a resample has Binomial(4, 1/4) ones: P(0) = 0.32, P(up to 2) = 0.949, P(up to 3) = 0.996
    assert bootstrap_interval([0.0, 0.0, 0.0, 1.0]) == (0.0, 0.75)
    assert bootstrap_interval([0.0, 1.0]) == (0.0, 1.0)  # P(0) = P(1) = 0.25
    assert bootstrap_interval([2.5] * 7) == (2.5, 2.5)


def test_the_interval_of_many_values_is_that_of_the_normal_approximation():
    values = np.random.default_rng(3).normal(5, 2, 4000)
    low, high = bootstrap_interval(list(values))
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.05 * half)


def test_the_interval_is_a_function_of_the_values():
    values = list(np.random.default_rng(0).normal(size=50))
    assert bootstrap_interval(values) == bootstrap_interval(list(values))


def test_drawing_in_pieces_covers_every_resample(monkeypatch):
    values = list(np.random.default_rng(0).normal(size=40))
    whole = bootstrap_interval(values)
    monkeypatch.setattr(intervals, "DRAWN", 1)  # one resample at a time
    assert bootstrap_interval(values) == pytest.approx(whole, abs=0.02)


@pytest.mark.parametrize("values", [[], [1.0]])
def test_one_value_has_no_interval(values):
    assert bootstrap_interval(values) is None


@pytest.mark.parametrize(
    ("differences", "p"),
    [
        ([1, 2, 3, 4, 5], 2 / 32),  # all signs the same: two of 2^5 choices are as extreme
        ([1, -2, 3], 6 / 8),  # rank sums of {1, 2, 3} that reach 4: 4, 5, 6, of eight
        ([1, 1, -1], 1.0),  # all ranks are 2
        ([2, 2, 5, 7], 2 / 16),
        ([0, 0, 3, -0.0, 3], 2 / 4),  # zeros are left out
        ([0, 0], 1.0),
        ([], 1.0),
        ([math.inf, 1, 2, 3, 4], 2 / 32),
        ([-math.inf, 1, 2, 3, 4], 20 / 32),  # positive ranks make 10 of 15; 22 of 32 sums are 10 or less, 10 are 10 up
        (DARWIN, 0.041259765625),
    ],
)
def test_the_exact_p_value(differences, p):
    assert signed_rank_p(differences) == p
    assert signed_rank_p([-d for d in differences]) == p


def test_the_exact_p_value_with_ties_is_that_of_all_signs():
    differences = [1, -1, 1, 2, 2, -3, 3, 3]
    ranks = [2, 2, 2, 4.5, 4.5, 7, 7, 7]
    seen = sum(r for r, d in zip(ranks, differences, strict=True) if d > 0)
    sums = [sum(r for r, s in zip(ranks, signs, strict=True) if s) for signs in itertools.product((0, 1), repeat=8)]
    tail = min(sum(total >= seen for total in sums), sum(total <= seen for total in sums))
    assert signed_rank_p(differences) == 2 * tail / 256


def test_beyond_25_pairs_the_distribution_is_taken_for_normal():
    n = 26
    deviation = math.sqrt(n * (n + 1) * (2 * n + 1) / 24)
    z = (n * (n + 1) / 2 - n * (n + 1) / 4 - 0.5) / deviation
    assert signed_rank_p(range(1, n + 1)) == pytest.approx(math.erfc(z / math.sqrt(2)), rel=1e-12)
    assert signed_rank_p([1, -1] * 20) == 1.0


def test_the_two_ways_agree_where_they_meet():
    differences = list(np.random.default_rng(1).normal(0.3, 1, 25))
    doubled = intervals._doubled_ranks([abs(d) for d in differences])
    positive = sum(rank for rank, d in zip(doubled, differences, strict=True) if d > 0)
    assert intervals._exact_p(doubled, positive) == pytest.approx(intervals._normal_p(doubled, positive), abs=0.01)
