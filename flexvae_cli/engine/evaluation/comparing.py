"""Two models, measured on the same images in the same way: which is better, and how sure one can be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from flexvae_cli.engine.evaluation.intervals import MOST_EXACT, bootstrap_interval, signed_rank_p
from flexvae_cli.engine.evaluation.measures import MEASURES, Measure
from flexvae_cli.engine.evaluation.result import Evaluation
from flexvae_cli.errors import DataError, Problem, UsageError

SIGNIFICANT = 0.05
Pair = tuple[float, float]


def compare(a: Evaluation, b: Evaluation, names: tuple[str, str]) -> dict[str, Any]:
    """The paired comparison of two results, of JSON values.

    Args:
        a, b: the results.
        names: the files that they come from, for messages.

    Raises:
        UsageError: they were measured in different ways, or on different images; every difference is named.
        DataError: a result does not hold the images that its stamp speaks of.
    """
    _require_same_protocol(a, b, names)
    first, second = ({row.name: row for row in each.images} for each in (a, b))
    if first.keys() != second.keys():
        raise DataError(f"holds other images than {names[0]}, though its stamp is the same", where=names[1])
    pairs = {
        m: [
            (x, y)
            for n in first
            if (x := first[n].value(m.key)) is not None and (y := second[n].value(m.key)) is not None
        ]
        for m in MEASURES
    }
    return {
        "a": {"result": names[0], **a.model.model_dump()},
        "b": {"result": names[1], **b.model.model_dump()},
        "images": len(first),
        "measures": {m.key: compare_pairs(m, found) for m, found in pairs.items() if found},
        "rfid": None if a.rfid is None or b.rfid is None else {"a": a.rfid, "b": b.rfid},
        "not_compared": [m.key for m, found in pairs.items() if not found],
    }


def _require_same_protocol(a: Evaluation, b: Evaluation, names: tuple[str, str]) -> None:
    problems = [
        Problem(f"{key} differs: {_short(x)} in {names[0]}, {_short(y)} in {names[1]}")
        for key, x, y in differences(a.protocol, b.protocol)
    ]
    if problems:
        last = Problem("these results cannot be ranked", hint="measure both models with the same options and images")
        raise UsageError(*problems, last)


def _short(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 20 else text[:12] + "..."


def compare_pairs(measure: Measure, pairs: Sequence[Pair]) -> dict[str, Any]:
    """One measure of A and B on the same images.

    The difference is B - A. Where one of the two is infinite, as the PSNR of identical images is, the pair counts as a
    win and in the ranks, not in the means.

    Returns:
        `mean_a`, `mean_b`, `difference`, its 95 % `interval` and whether that `excludes_zero`; how often either
        `wins_a`, `wins_b` or neither, `ties`; `p` of Wilcoxon's signed-rank test; and which is `better`: named only
        where the interval excludes 0 and p is below 0.05, else None.
    """
    apart = [0.0 if x == y else y - x for x, y in pairs]
    finite = [(x, y) for x, y in pairs if math.isfinite(x) and math.isfinite(y)]
    finite_apart = [y - x for x, y in finite]
    interval, p = bootstrap_interval(finite_apart), signed_rank_p(apart)
    upward = sum(d > 0 for d in apart)
    downward = sum(d < 0 for d in apart)
    wins_a, wins_b = (downward, upward) if measure.better == "higher" else (upward, downward)
    excludes_zero = interval is not None and (interval[0] > 0 or interval[1] < 0)
    better = None
    if excludes_zero and interval is not None and p < SIGNIFICANT:
        better = "b" if (interval[0] > 0) == (measure.better == "higher") else "a"
    return {
        "better_is": measure.better,
        "pairs": len(pairs),
        "mean_a": _mean([x for x, _ in finite]),
        "mean_b": _mean([y for _, y in finite]),
        "difference": _mean(finite_apart),
        "interval": None if interval is None else list(interval),
        "excludes_zero": excludes_zero,
        "wins_a": wins_a,
        "wins_b": wins_b,
        "ties": len(pairs) - wins_a - wins_b,
        "p": p,
        "test": "Wilcoxon signed-rank, " + ("exact" if upward + downward <= MOST_EXACT else "normal approximation"),
        "better": better,
    }


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def differences(a: dict[str, Any], b: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """Where two stamps differ: the key, as in `data.sha256`, and both values, None for a key that is not there."""
    first, second = _flat(a), _flat(b)
    keys = dict.fromkeys([*first, *second])
    return [(key, first.get(key), second.get(key)) for key in keys if first.get(key) != second.get(key)]


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    return {k: v for key, each in value.items() for k, v in _flat(each, f"{prefix}.{key}" if prefix else key).items()}
