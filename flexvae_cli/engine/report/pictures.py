"""The previews of a run, within the page."""

from __future__ import annotations

import contextlib
from pathlib import Path

from flexvae_cli.engine.report.facts import Facts
from flexvae_cli.engine.report.markup import image

MOST_PICTURES = 16 << 20  # bytes of previews in a page
PNG = b"\x89PNG"


def pictures(facts: Facts) -> str:
    """The previews with a slider over the steps; of many, an even choice that fits the page."""
    chosen = _affordable(facts)
    figures = [
        f"<figure><figcaption>step {step:,}</figcaption>{image(data, 'png', f'preview at step {step}')}</figure>"
        for step, data in chosen
    ]
    if len(figures) < 2:
        return "".join(figures)
    last = len(figures) - 1
    slider = (
        f'<label class="slider">step <output></output><input type="range" min="0" max="{last}" value="{last}"></label>'
    )
    return f'<div class="previews">{slider}{"".join(figures)}</div>'


def _affordable(facts: Facts) -> list[tuple[int, bytes]]:
    """The newest preview and as many even steps before it as fit; of those that can be read."""
    newest_first, every = facts.previews[::-1], 1
    sizes = [_size(file) for _, file in newest_first]
    while every < len(sizes) and sum(sizes[::every]) > MOST_PICTURES:
        every += 1
    found: list[tuple[int, bytes]] = []
    for step, file in newest_first[::every]:
        with contextlib.suppress(OSError):
            found.append((step, file.read_bytes()))
    return [(step, data) for step, data in reversed(found) if data.startswith(PNG)]


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0
