"""What makes any quantizing layer an entry of a net, or its bottleneck: the border between `Quantized` and a net."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from flexvae_cli.api import Encoded, Quantized

Found = list[tuple[Mapping[str, Tensor], Tensor | None]]

_found: ContextVar[Found | None] = ContextVar("quantized", default=None)


@contextmanager
def quantizers_told() -> Iterator[Found]:
    """While held, every quantizing entry that runs in this context adds its statistics and its loss to the list.

    A backward pass that runs a part of the net again adds nothing: the list is closed by then.
    """
    found: Found = []
    token = _found.set(found)
    try:
        yield found
    finally:
        _found.reset(token)


def in_full_precision(quantizer: nn.Module, x: Tensor) -> Quantized:
    """Run a quantizer on fp32 with autocast off: half precision cannot tell neighbouring codes apart."""
    with torch.autocast(x.device.type, enabled=False):
        return quantizer(x.float() if x.dtype in (torch.bfloat16, torch.float16) else x)


class QuantizedEntry(nn.Module):
    """A quantizer as an entry of a structure: a tensor comes out, in the type of what goes in.

    Args:
        quantizer: what the layer's factory made.
        key: what its statistics are called by in the log.
    """

    def __init__(self, quantizer: nn.Module, key: str) -> None:
        super().__init__()
        self.quantizer = quantizer
        self.key = key

    def forward(self, x: Tensor) -> Tensor:
        quantized = in_full_precision(self.quantizer, x)
        found = _found.get()
        if found is not None:
            found.append(({f"{self.key}.{name}": value for name, value in quantized.stats.items()}, quantized.loss))
        return quantized.x.to(x.dtype)


class QuantizedBottleneck(nn.Module):
    """A quantizer as a bottleneck: the latent is the quantized output of the encoder."""

    quantizer: Any

    def __init__(self, quantizer: nn.Module) -> None:
        super().__init__()
        self.quantizer = quantizer

    @property
    def bits(self) -> float | None:
        """What one index costs, where the codes of the quantizer are all of one size."""
        return getattr(self.quantizer, "bits", None)

    def forward(self, x: Tensor) -> Encoded:
        quantized = in_full_precision(self.quantizer, x)
        stats = {f"bottleneck.{name}": value for name, value in quantized.stats.items()}
        return Encoded(quantized.x, None, quantized.indices, quantized.loss, stats)

    def from_indices(self, indices: Tensor) -> Tensor:
        """Indices (b, q, *space) to the latents (b, c, *space) that they stand for."""
        latents: Tensor = self.quantizer.from_indices(indices)
        return latents


def with_entries(encoded: Encoded, found: Found) -> Encoded:
    """What the bottleneck gave, with the statistics and the losses of a net's quantizing entries."""
    if not found:
        return encoded
    losses = [loss for loss in (encoded.loss, *(loss for _, loss in found)) if loss is not None]
    stats = {**encoded.stats}
    for each, _ in found:
        stats |= each
    return encoded._replace(loss=torch.stack(losses).sum() if losses else None, stats=stats)
