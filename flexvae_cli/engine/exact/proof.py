"""Whether layers may be cut: tried on a small input, where what comes out whole is there to compare with."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

import torch
from torch import Tensor, nn

from flexvae_cli.api import Shape
from flexvae_cli.engine.exact.activation import Activation
from flexvae_cli.engine.exact.bands import How, UncuttableError
from flexvae_cli.engine.exact.ways import way_of
from flexvae_cli.structure import Item

TOLERANCE = 1e-5  # of the largest number that comes out, or of 1 if that is more
BANDS = 3
MOST = 1 << 20  # numbers in an input that is tried


def holds(how: How, items: Sequence[Item], module: nn.Module, shape: Shape, folder: Path) -> bool:
    """Whether a way to run layers gives what they give as a whole.

    A rule that says too little of a layer, and a layer that minds where it is, are found out here: what comes in
    differs from band to band, in its mean as well.

    Args:
        how: the way.
        items: the layers, by whose rules they are cut.
        module: the layers themselves.
        shape: (channels, *space) of what they will be run on.
        folder: where the disk is.
    """
    small = next(_small_shapes(items, shape), None)
    way = None if small is None else way_of(items, small)
    if small is None or way is None:
        return False
    x = _uneven(small)
    device = next((p.device for p in module.parameters()), x.device)
    expected = module(x.to(device)).cpu()
    made: list[Activation] = []

    def make(shape: Shape, axis: int) -> Activation:
        made.append(Activation(shape, folder, axis))
        return made[-1]

    try:
        source = make((1, *small), 2)
        source.write(0, x)
        found = how.run(source, module, way, make, math.ceil(way.shape[1] / BANDS)).whole()
    except (UncuttableError, RuntimeError, ValueError, TypeError, IndexError, NotImplementedError):
        return False  # a stranger's forward, on a piece that it cannot take
    finally:
        for each in made:
            each.close()
    most = TOLERANCE * max(1.0, float(expected.abs().max()))
    return found.shape == expected.shape and bool((found - expected).abs().max() <= most)


def _small_shapes(items: Sequence[Item], shape: Shape) -> Iterator[Shape]:
    """Inputs that the layers take, the first axis long enough for several bands with their margins."""
    way = way_of(items, shape)
    if way is None:
        return
    rows = way.period * math.ceil((3 * way.margin + 8) / way.period)
    others = [[n for n in (8, 16, 32) if n < size] + [size] for size in shape[2:]]
    for space in product([rows] if rows < shape[1] else [], *others):
        if _taken(items, (shape[0], *space)):
            yield (shape[0], *space)
    if math.prod(shape) <= MOST:
        yield shape


def _taken(items: Sequence[Item], shape: Shape) -> bool:
    try:
        return way_of(items, shape) is not None
    except ValueError:
        return False


def _uneven(shape: Shape) -> Tensor:
    """Noise (1, *shape) whose mean rises from row to row."""
    noise = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    return noise + torch.linspace(-2, 2, shape[1]).view(-1, *(1 for _ in shape[2:]))
