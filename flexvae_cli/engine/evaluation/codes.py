"""How the quantizers of a net use their codes over a whole data set."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from flexvae_cli.api import Quantized
from flexvae_cli.engine.bottlenecks.quantized import QuantizedBottleneck, QuantizedEntry
from flexvae_cli.engine.vae import VAE

MOST_COUNTED = 1 << 24  # codes of all codebooks of a quantizer, of which uses are still counted


@dataclass
class Quantizer:
    """A quantizer of a net and what was counted of it.

    Attributes:
        place: as in the log: `bottleneck`, or `encoder.3`.
        codes: how many an index chooses from.
        counts: (codebooks, codes), how often each was chosen; None where it did not run, or has too many to count.
    """

    place: str
    codes: int
    counts: np.ndarray | None = None

    def add(self, indices: Tensor) -> None:
        """Take in indices (b, codebooks, *space); -1, a code that was left out, is passed over."""
        books = indices.detach().cpu().transpose(0, 1).flatten(1).numpy()  # (codebooks, n)
        if len(books) * self.codes > MOST_COUNTED:
            return
        if self.counts is None:
            self.counts = np.zeros((len(books), self.codes), dtype=np.int64)
        for counts, book in zip(self.counts, books, strict=True):
            counts += np.bincount(book[book >= 0], minlength=self.codes)

    def values(self) -> dict[str, Any]:
        """Usage (the part of the codes that occur), entropy in bits and perplexity, as means over the codebooks."""
        assert self.counts is not None
        share = self.counts / np.maximum(self.counts.sum(1, keepdims=True), 1)
        entropy = -(share * np.log2(np.where(share > 0, share, 1))).sum(1)  # (codebooks,)
        return {
            "place": self.place,
            "codebooks": len(self.counts),
            "codes": self.codes,
            "usage": float((self.counts > 0).mean()),
            "entropy": float(entropy.mean()),
            "perplexity": float(np.exp2(entropy).mean()),
        }


@contextmanager
def codes_counted(vae: VAE) -> Iterator[list[Quantizer]]:
    """While held, every quantizer of a VAE counts the codes that it chooses, where they are not too many."""
    found: list[Quantizer] = []
    hooks = []
    for name, part in vae.named_modules():
        if isinstance(part, QuantizedEntry | QuantizedBottleneck):
            bits = getattr(part.quantizer, "bits", None)
            if bits is not None and 0 < bits < 62:
                found.append(Quantizer(getattr(part, "key", name), round(2**bits)))
                hooks.append(part.quantizer.register_forward_hook(_counting(found[-1])))
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _counting(quantizer: Quantizer) -> Any:
    def count(_: nn.Module, __: Any, quantized: Quantized) -> None:
        quantizer.add(quantized.indices)

    return count


def told(found: list[Quantizer]) -> list[dict[str, Any]]:
    """The values of the quantizers that were counted."""
    return [quantizer.values() for quantizer in found if quantizer.counts is not None]
