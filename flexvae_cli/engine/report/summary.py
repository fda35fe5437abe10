"""The numbers of a run that one looks at first."""

from __future__ import annotations

import math
from datetime import datetime
from statistics import median
from typing import Any

from flexvae_cli.engine.report.facts import Facts


def summary(facts: Facts) -> dict[str, Any]:
    """What `flexvae report --json` says of a run; None where nothing is known."""
    best = max(_finite(facts, "validation", "psnr"), key=lambda found: found[1], default=None)
    speeds = [speed for _, speed in _finite(facts, "train", "images_per_second")]
    memory = [taken for _, taken in _finite(facts, "train", "memory_bytes")]
    return {
        "run": str(facts.path),
        "status": facts.status,
        "step": facts.step,
        "max_steps": facts.max_steps,
        "checkpoint": facts.checkpoint,
        "loss": _last(facts, "train", "loss"),
        "validation_loss": _last(facts, "validation", "loss"),
        "psnr": _last(facts, "validation", "psnr"),
        "ssim": _last(facts, "validation", "ssim"),
        "best_psnr": None if best is None else {"step": best[0], "psnr": best[1]},
        "images_per_second": median(speeds) if speeds else None,
        "memory_bytes": max(memory) if memory else None,
        "bad_files": len(facts.bad_files),
        "skipped": max(len(facts.skipped), int(_last(facts, "train", "skipped") or 0)),
    }


def _finite(facts: Facts, kind: str, name: str) -> list[tuple[int, float]]:
    return [(step, value) for step, value in facts.column(kind, name) if math.isfinite(value)]


def _last(facts: Facts, kind: str, name: str) -> float | None:
    found = _finite(facts, kind, name)
    return found[-1][1] if found else None


def span(facts: Facts) -> str:
    """`2026-01-31 09:30 to 11:02, 1 h 32 min`: from the first to the last line of metrics; empty where unknown."""
    if not facts.times:
        return ""
    seconds = max(facts.times) - min(facts.times)
    first, last = (datetime.fromtimestamp(t).astimezone() for t in (min(facts.times), max(facts.times)))
    if seconds < 1:
        return f"{first:%Y-%m-%d %H:%M}"
    until = f"{last:%H:%M}" if first.date() == last.date() else f"{last:%Y-%m-%d %H:%M}"
    return f"{first:%Y-%m-%d %H:%M} to {until}, {duration(seconds)}"


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `1 h 32 min`, `3 d 4 h`."""
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    minutes = round(whole / 60)
    if minutes < 120:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"
