"""What a look through a data set has found, in numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from flexvae_cli.engine.data.audit import Kind, Seen, Unusable, duplicates


def summary(samples: Sequence[Seen], unusable: Sequence[Unusable]) -> dict[str, Any]:
    """What there is, of JSON values; `range` is where 0 and 1 stand for the numbers that become -1 and 1."""
    sides = sorted(min(sample.size) for sample in samples)
    reaches = [sample.reach for sample in samples]
    kinds: dict[Kind, list[Seen]] = {}
    for sample in samples:
        kinds.setdefault(sample.kind, []).append(sample)
    return {
        "images": len(samples),
        "unusable": [{"name": bad.name, "reason": bad.reason} for bad in unusable],
        "bytes": sum(sample.bytes for sample in samples),
        "kinds": [
            {**asdict(kind), "images": len(alike), **_of_kind(alike)}
            for kind, alike in sorted(kinds.items(), key=lambda each: -len(each[1]))
        ],
        "shorter_side": {"min": sides[0], "median": sides[len(sides) // 2], "max": sides[-1]} if sides else None,
        "range": {"min": min(r[0] for r in reaches), "max": max(r[1] for r in reaches)} if reaches else None,
        "clipped": _clipped(samples),
        "constant": [sample.name for sample in samples if sample.low == sample.high],
        "duplicates": duplicates(samples),
    }


def _of_kind(samples: Sequence[Seen]) -> dict[str, Any]:
    """The smallest and the largest sample of a kind, by positions, and its numbers as the files have them."""
    sizes = sorted((sample.size for sample in samples), key=math.prod)
    numbers = {"min": min(sample.low for sample in samples), "max": max(sample.high for sample in samples)}
    return {"smallest": list(sizes[0]), "largest": list(sizes[-1]), "numbers": numbers}


def _clipped(samples: Sequence[Seen]) -> float:
    """The part of all numbers that lies beyond those that become -1 and 1."""
    counts = [math.prod(sample.size) * sample.kind.channels for sample in samples]
    beyond = sum(sample.clipped * count for sample, count in zip(samples, counts, strict=True))
    return beyond / sum(counts) if samples else 0.0
