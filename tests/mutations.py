"""Damage to files, drawn from a seed, and how much memory reading them took."""

from __future__ import annotations

import os
import random

NIGHTLY_TIMES = 250 if os.environ.get("FLEXVAE_NIGHTLY") == "1" else 1
MOST_GROWTH = 200 << 20  # bytes


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Flip, overwrite, repeat or cut; half of the damage in the first 64 bytes, where the header is."""
    damaged = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8, 40))):
        at = rng.randrange(min(64, len(damaged)) if rng.random() < 0.5 else len(damaged))
        damaged[at] = rng.choice((damaged[at] ^ 1 << rng.randrange(8), 0, 255, rng.randrange(256)))
    action, at = rng.randrange(6), rng.randrange(len(damaged))
    if action == 0:
        del damaged[at:]
    elif action == 1:
        damaged[at:at] = damaged[: rng.randrange(64)]
    return bytes(damaged)


def most_memory() -> int:
    """The most bytes that this process has had so far; 0 where that is not told."""
    try:
        import resource
    except ImportError:
        return 0
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
