"""Stateless randomness: every random number is a function of the run's seed and of what it is for.

Nothing is carried from one step to the next, so there is nothing to save: a run that resumes at step n draws what the
uninterrupted run drew there, whatever the number of data workers.
"""

from __future__ import annotations

import random
from hashlib import blake2b

import numpy as np
import torch


def seed_of(*parts: int | str) -> int:
    """A seed that is the same in every process, on every machine and in every version of Python.

    Args:
        parts: what the randomness is for, as in `seed_of(seed, "order", epoch)`. `1` and `"1"` differ, and so do
            `("ab", "c")` and `("a", "bc")`.

    Returns:
        A whole number from 0 to 2**63 - 1.
    """
    digest = blake2b(digest_size=8)
    for part in parts:
        text = str(part).encode("utf-8", "surrogateescape")  # file names need not be valid text
        digest.update(b"%b%d:%b" % (b"s" if isinstance(part, str) else b"i", len(text), text))
    return int.from_bytes(digest.digest(), "big") >> 1


def generator(*parts: int | str) -> torch.Generator:
    """A torch generator on the CPU, seeded with `seed_of(*parts)`."""
    return torch.Generator().manual_seed(seed_of(*parts))


def seed_everything(seed: int, step: int, k: int) -> None:
    """Re-seed the global generators of torch, numpy and Python for one micro-step.

    This covers the reparametrisation, dropout and whatever a plugin layer draws.

    Args:
        seed: the seed of the run.
        step: the optimizer step.
        k: micro-batch x world size + rank.
    """
    value = seed_of(seed, "step", step, k)
    torch.default_generator.manual_seed(value)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(value)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(value)
    np.random.seed(value % 2**32)
    random.seed(value)
