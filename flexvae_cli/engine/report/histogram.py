"""The values of one latent channel as a small picture: its histogram, and the standard normal for comparison."""

from __future__ import annotations

import math
from typing import Any

WIDTH, HEIGHT, FOOT = 180, 84, 14
NORMAL = 3.0  # the normal's curve is seen from minus this to this at least
STEPS = 60  # pieces of the normal's curve


def histogram(channel: dict[str, Any], counts: dict[str, Any], reach: float) -> str:
    """A figure of a channel and its histogram, as `LatentStatistics.values` has them, from -reach to reach."""
    reach = max(reach * 1.05, NORMAL)
    low, high, bins = counts["low"], counts["high"], counts["counts"]
    step, total = (high - low) / len(bins), sum(bins) or 1
    density = [count / total / step for count in bins]
    top = 1.1 * max([*density, _normal(0)])
    bars = "".join(
        f"M{_x(low + n * step, reach):.1f} {HEIGHT - FOOT}V{_y(d, top):.1f}H{_x(low + (n + 1) * step, reach):.1f}"
        f"V{HEIGHT - FOOT}Z"
        for n, d in enumerate(density)
        if d
    )
    places = [reach * (2 * n / STEPS - 1) for n in range(STEPS + 1)]
    curve = "L".join(f"{_x(v, reach):.1f} {_y(_normal(v), top):.1f}" for v in places)
    ends = "".join(
        f'<text x="{_x(v, reach):.1f}" y="{HEIGHT - 2}" text-anchor="{anchor}">{v:.2g}</text>'
        for v, anchor in ((-reach, "start"), (0.0, "middle"), (reach, "end"))
    )
    name = f"channel {channel['channel']}"
    about = f"mean {channel['mean']:.2f}, std {channel['std']:.2f}" + ("" if channel["active"] else ", inactive")
    return (
        f'<figure class="histogram"><figcaption><b>{name}</b> <small>{about}</small></figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="histogram of {name}: {about}">'
        f'<path class="bars" d="{bars}"/><path class="normal" d="M{curve}"/>{ends}</svg></figure>'
    )


def _normal(value: float) -> float:
    return math.exp(-value * value / 2) / math.sqrt(2 * math.pi)


def _x(value: float, reach: float) -> float:
    return (value / reach + 1) / 2 * WIDTH


def _y(density: float, top: float) -> float:
    return (HEIGHT - FOOT) * (1 - density / top)
