"""From tensors (b, c, *space) to one row for each position, and what is common to all quantizers."""

from __future__ import annotations

import math

import torch
from torch import Tensor

MOST_COUNTED = 1 << 20  # codes, of which a step's statistics are still gathered


def rows(x: Tensor) -> Tensor:
    """(b, c, *space) -> (b * positions, c)."""
    return x.movedim(1, -1).reshape(-1, x.shape[1])


def grid(flat: Tensor, like: Tensor) -> Tensor:
    """(b * positions, c) -> (b, c, *space), the axes b and space as `like` has them."""
    return flat.reshape(len(like), *like.shape[2:], flat.shape[-1]).movedim(-1, 1)


def passed(exact: Tensor, surrogate: Tensor) -> Tensor:
    """The very numbers of `exact`, with the gradient of `surrogate`; not finite where `surrogate` is not."""
    return exact + (surrogate - surrogate.detach())


def levels_used(levels: int, dropout: float) -> int:
    """How many levels a pass uses: all, or with the probability `dropout` a random number from 1."""
    if not dropout:
        return levels
    chance, part = torch.rand(2, device="cpu").tolist()  # from the host's generator: no device is waited for
    return 1 + int(part * levels) if chance < dropout else levels


@torch.no_grad()
def code_stats(indices: Tensor, size: int) -> dict[str, Tensor]:
    """How a batch uses its codes, the mean over several codebooks.

    Args:
        indices: (rows, codebooks), -1 for codes that were left out.
        size: the codes of one codebook.

    Returns:
        `usage`, the part of the codes that occur; `entropy` in bits; `perplexity`, 2 to the entropy. Nothing for more
        than a million codes.
    """
    if size > MOST_COUNTED:
        return {}
    books = indices.shape[1]
    there = indices >= 0
    slots = (indices.clamp(min=0) + size * torch.arange(books, device=indices.device)).flatten()
    counts = torch.zeros(books * size, device=indices.device).index_add_(0, slots, there.flatten().float())
    counts = counts.view(books, size)
    used = counts.sum(1).clamp(min=1)  # (books,)
    share = counts / used[:, None]
    entropy = torch.special.entr(share).sum(1) / math.log(2)  # (books,)
    taking = there.any(0).float()  # the codebooks that were not left out

    def mean(each: Tensor) -> Tensor:
        return (each * taking).sum() / taking.sum()

    return {
        "usage": mean((counts > 0).float().mean(1)),
        "entropy": mean(entropy),
        "perplexity": mean(torch.exp2(entropy)),
    }
