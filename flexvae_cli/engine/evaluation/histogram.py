"""Counts of numbers whose range nobody knows beforehand."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

BINS = 128  # a multiple of 4, so that the range can double by joining neighbours
SMALLEST = 2.0**-20  # the first range reaches from minus this to this


@dataclass
class Histogram:
    """Bins of equal width from -reach to reach, where reach is a power of two.

    Where a number lies outside, the reach doubles and neighbouring bins are joined: the counts are exact, whatever
    the order of the numbers.
    """

    reach: float = SMALLEST
    counts: np.ndarray = field(default_factory=lambda: np.zeros(BINS, np.int64))

    def add(self, values: np.ndarray) -> None:
        """Count finite numbers (n,)."""
        largest = float(np.abs(values).max(initial=0.0))
        while largest >= self.reach:
            joined = self.counts.reshape(-1, 2).sum(1)
            self.counts = np.zeros(BINS, np.int64)
            self.counts[BINS // 4 : 3 * BINS // 4] = joined
            self.reach *= 2
        places = np.floor((values + self.reach) * (BINS / 2 / self.reach)).astype(np.int64)
        self.counts += np.bincount(places.clip(0, BINS - 1), minlength=BINS)  # just below the reach, + rounds up
