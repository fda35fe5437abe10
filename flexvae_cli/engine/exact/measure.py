"""What a band takes of memory, found without computing: the same code, run on the meta device under the tracker."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from flexvae_cli.api import Shape
from flexvae_cli.engine.exact.activation import Activation
from flexvae_cli.engine.exact.bands import How
from flexvae_cli.engine.exact.ways import Way
from flexvae_cli.engine.memory.tracker import Extra, Tracker
from flexvae_cli.engine.memory.workspace import FORWARD

LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}  # by the axes of a tensor


def needed(how: How, twin: nn.Module, takes: Shape, way: Way, rows: int) -> int:
    """The most bytes that are held at once, beyond the weights, while so many rows of the output are computed.

    Args:
        how: the way that the layers are run in.
        twin: the layers on the meta device.
        takes: (channels, *space).
        way: what they do.
        rows: of the output.
    """
    with torch.inference_mode(False), torch.no_grad(), Tracker("meta", _reordered) as tracker:  # which names operations
        tracker.hold(twin.parameters(), "weights")
        tracker.hold(twin.buffers(), "weights")
        weights = tracker.held
        try:
            how.run(Activation((1, *takes), None), twin, way, lambda shape, axis: Activation(shape, None, axis), rows)
        except (
            NotImplementedError
        ):  # a layer that is not for the meta device: what goes in, comes out, and as much again
            return 8 * (math.prod(takes) + math.prod(way.shape))
    return tracker.peak.bytes - weights


def _reordered(operation: Any, args: tuple[Any, ...], out: Any) -> Iterator[Extra]:
    """What a CPU's library copies for a convolution.

    Of what is channels-last the kernels alone, twice: into that layout, and into one of its own. Of anything else what
    it reads and what it writes; where it may choose Winograd's algorithm, it transforms both besides: 36 numbers for 16
    positions, or 6 for 4.
    """
    if operation is not FORWARD:
        return
    x, weight, _, stride, _, dilation, *_, groups = args
    if x.dim() in LAYOUTS and x.is_contiguous(memory_format=LAYOUTS[x.dim()]):
        yield Extra(2 * weight.nbytes)
        return
    plain = {*stride, *dilation, groups} == {1} and set(weight.shape[2:]) == {3}
    transformed = math.prod(6 / 4 for _ in weight.shape[2:]) if plain else 0
    yield Extra(int((1 + transformed) * (x.nbytes + out.nbytes)))
