"""Axes of a chart: from numbers to places, and the round numbers that are written along them."""

from __future__ import annotations

import math
from dataclasses import dataclass

DECADES = 1.0  # powers of ten between least and greatest from which on an axis may be logarithmic
POWERS = ("", "k", "M", "G", "T", "P")
TINY = 1e-290  # what is nearer to 0 counts as 0: there is no reckoning with it
MARGIN = 0.06  # of air at either end


@dataclass(frozen=True, slots=True)
class Axis:
    """From numbers between `low` and `high` to places between `start` and `end`."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def at(self, value: float) -> float:
        """The place of a number."""
        low, high, here = (math.log10(n) if self.logarithmic else n for n in (self.low, self.high, value))
        return self.start + (self.end - self.start) * (here - low) / (high - low)

    def ticks(self) -> list[tuple[float, str]]:
        """Round numbers, few enough to be read, and how each is written."""
        found = _powers(self.low, self.high) if self.logarithmic else _multiples(self.low, self.high)
        digits = next((n for n in range(3, 8) if len({number(tick, n) for tick in found}) == len(found)), 8)
        return [(tick, number(tick, digits)) for tick in found]


def make_axis(low: float, high: float, start: float, end: float, kind: str = "linear") -> Axis:
    """An axis that holds the numbers from `low` to `high` with some air around them.

    Args:
        low: the least number.
        high: the greatest one.
        start: the place where the axis begins.
        end: the place where it ends.
        kind: `linear`; `zero` begins at 0 where no number is below; `log` is logarithmic where all numbers are above 0
            and the greatest is ten times the least or more.
    """
    low, high = (0.0 if abs(n) < TINY else n for n in (low, high))
    if kind == "log" and low > 0 and math.log10(high) - math.log10(low) > DECADES:
        return Axis(low / 1.1, high * 1.1, start, end, True)
    if kind == "zero" and low >= 0:
        return Axis(0.0, high * (1 + MARGIN) or 1.0, start, end)
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        low, high = low - (abs(low) / 2 or 0.5), high + (abs(high) / 2 or 0.5)
    air = MARGIN * (high - low)
    return Axis(max(0.0, low - air) if low >= 0 else low - air, high + air, start, end)


def _multiples(low: float, high: float, most: int = 5) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    return [n * step for n in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _powers(low: float, high: float, most: int = 6) -> list[float]:
    """Powers of ten, with 2 and 5 times them where these are few."""
    exponents = range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)
    if len(exponents) > 2:
        return [10.0**e for e in exponents[:: math.ceil(len(exponents) / most)]]
    around = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [f * 10.0**e for e in around for f in (1, 2, 5) if low <= f * 10.0**e <= high]


def number(value: float, digits: int = 3) -> str:
    """A number as an axis has it: `0.05`, `1,500`, `20k`, `1e-5`."""
    if not math.isfinite(value):
        return "\N{EN DASH}"
    if 1e3 <= abs(value) < 1e4:
        return f"{value:,.0f}"
    power = 0
    while abs(value) >= 999.5 and power < len(POWERS) - 1:
        value, power = value / 1000, power + 1
    mantissa, _, exponent = f"{value:.{digits}g}".partition("e")
    return (f"{mantissa}e{int(exponent)}" if exponent else mantissa) + POWERS[power]
