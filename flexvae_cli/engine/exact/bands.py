"""Ways to run a layer: in bands, where an output depends on its neighbourhood alone, or on the whole tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from flexvae_cli.engine.exact.activation import Activation, Make
from flexvae_cli.engine.exact.ways import Piece, Way


class UncuttableError(Exception):
    """A layer that cannot be run band by band; the text says why."""


class How(Protocol):
    """A way to run layers."""

    def run(self, x: Activation, module: nn.Module, way: Way, make: Make, rows: int) -> Activation:
        """What layers make of x.

        Args:
            x: (1, c, *space).
            module: the layers, or their twin on the meta device.
            way: what they do to an input of this size.
            make: makes room for what comes out, and for what is kept on the way.
            rows: of the output, to be computed at a time.

        Raises:
            UncuttableError: they cannot be run this way.
        """


class Local:
    """A band of the output needs a band of the input and a margin around it; zeros are padded at true borders only."""

    def run(self, x: Activation, module: nn.Module, way: Way, make: Make, rows: int) -> Activation:
        device = device_of(module)
        return in_bands(x, way, make, rows, lambda piece: module(x.read(piece.begin, piece.end).to(device)))


class Whole:
    """The layers see everything at once."""

    def run(self, x: Activation, module: nn.Module, way: Way, make: Make, rows: int) -> Activation:  # noqa: ARG002
        out = make((1, *way.shape), 2)
        out.write(0, module(x.whole().to(device_of(module))))
        return out


def in_bands(x: Activation, way: Way, make: Make, rows: int, compute: Callable[[Piece], Tensor]) -> Activation:
    """The output, so many rows at a time, each of what `compute` makes of a piece of the input."""
    out = make((1, *way.shape), 2)
    try:
        for first, end in out.bands(rows):
            piece = way.piece(first, end, x.rows)
            out.write(first, compute(piece)[:, :, piece.skip : piece.skip + end - first])
    except BaseException:
        out.close()
        raise
    return out


def device_of(module: nn.Module) -> torch.device:
    """Where a module computes."""
    return next((p.device for p in module.parameters()), torch.device("cpu"))
