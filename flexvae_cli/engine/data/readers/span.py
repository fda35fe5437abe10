"""Which numbers of a file become -1 and 1."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from flexvae_cli.api.readers import BadFile

PIECE = 1 << 22  # numbers looked at together
HOW_TO_STATE = "name data.reader, and set data.low and data.high, or data.range = 'file', in a config"


@dataclass(frozen=True, slots=True)
class Span:
    """What a config says of the range of numbers; see the readers' parameters.

    Raises:
        ValueError: the two ends do not make a range.
    """

    kind: Literal["type", "file"] = "type"
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        given = [end for end in (self.low, self.high) if end is not None]
        if len(given) == 1:
            raise ValueError("low and high go together")
        if not all(map(math.isfinite, given)):
            raise ValueError(f"low {given[0]:g} and high {given[1]:g} want to be finite")
        if given and given[0] >= given[1]:
            raise ValueError(f"low {given[0]:g} wants to be below high {given[1]:g}")
        if given and self.kind == "file":
            raise ValueError("range is 'file', and low and high say otherwise; leave one out")

    @property
    def stated(self) -> bool:
        """Whether anything is said, so that a type need not be asked."""
        return self.kind == "file" or self.low is not None

    def of(self, path: Path, data: np.ndarray) -> tuple[float, float]:
        """The ends for the numbers of a file.

        Raises:
            BadFile: there are numbers that are not finite, or their range is not known.
        """
        if self.kind == "file":
            return extremes(path, data)
        if self.low is not None and self.high is not None:
            if not isinstance(data, np.memmap):
                require_finite(path, data)
            return self.low, self.high
        if data.dtype.kind == "u" and data.dtype.itemsize <= 2:
            return 0.0, float(np.iinfo(data.dtype).max)
        if data.dtype.kind == "b":
            return 0.0, 1.0
        low, high = extremes(path, data)
        if data.dtype.kind == "f" and low >= -1 and high <= 1:
            return -1.0, 1.0
        raise BadFile(
            path,
            f"holds {data.dtype.name} from {low:g} to {high:g}, whose range is not known: {HOW_TO_STATE}",
        )


UNSTATED = Span()


def extremes(path: Path, data: np.ndarray) -> tuple[float, float]:
    """The least and the greatest number, apart from each other.

    Raises:
        BadFile: there are numbers that are not finite.
    """
    require_finite(path, data)
    low, high = float(data.min()), float(data.max())
    return (low, high) if high > low else (low, low + max(1.0, abs(low)))


def require_finite(path: Path, data: np.ndarray) -> None:
    """Refuse NaN and infinity.

    Raises:
        BadFile: there are some.
    """
    if data.dtype.kind != "f":
        return
    bad = sum(part.size - int(np.isfinite(part).sum()) for part in pieces(data))
    if bad:
        raise BadFile(path, f"holds {bad:,} numbers that are not finite (NaN or infinity)")


def pieces(data: np.ndarray) -> list[np.ndarray]:
    """Views of the data, along its first axis, so that a mapped file need not fit into memory."""
    rows = max(1, PIECE // max(1, data[:1].size))
    return [data[start : start + rows] for start in range(0, len(data), rows)]


def typed(x: np.ndarray, low: float, high: float, dtype: np.dtype) -> np.ndarray:
    """Samples in [-1, 1] as numbers from `low` to `high` of a type; whole ones are rounded, and stay in its range.

    Raises:
        ValueError: the type is not one of real numbers.
    """
    if dtype.kind not in "biuf":
        raise ValueError(f"{dtype} is no type of real numbers")
    numbers: np.ndarray = (x.astype(np.float64) + 1) / 2 * (high - low) + low
    if dtype.kind in "iu":
        about = np.iinfo(dtype)
        numbers = np.rint(numbers).clip(about.min, about.max)
    return (numbers >= 0.5 if dtype.kind == "b" else numbers).astype(dtype)
