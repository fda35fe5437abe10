"""Sizes as a person reads them."""

from __future__ import annotations


def size(count: int) -> str:
    """`1.21 GiB`, `85.0 MiB`."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
