"""The input at which a structure is shown where the user gives none."""

from __future__ import annotations

from flexvae_cli.api.spec import LayerSpec
from flexvae_cli.api.trace import Shape
from flexvae_cli.errors import Problem
from flexvae_cli.structure import Structure, leaves
from flexvae_cli.tracing import Fallback, trace

CHANNELS = ("in_channels", "num_channels", "channels", "num_features", "in_features")
SIDES = {1: 16384, 2: 256, 3: 64}
"""Number of spatial axes -> the side of the input that is assumed where none is given."""


def assumed_input(structure: Structure, fallback: Fallback | None = None) -> Shape:
    """The input that a structure is shown at where none is given.

    Channels and number of axes are what its first layers ask for. A side is 256 for images (16384 for 1-D, 64 for 3-D
    data), or a little less where that does not fit; for a structure that enlarges, it is the side that gives 256.
    """
    items = structure.expanded()
    layers = list(leaves(items))
    values = (leaf.bound.values.get(name) for leaf in layers for name in CHANNELS)
    channels = next((value for value in values if isinstance(value, int)), 3)
    dims = (leaf.bound.spec.dims for leaf in layers if isinstance(leaf.bound.spec, LayerSpec))
    axes = next((n for n in dims if n), 2)
    for side in (SIDES[axes], SIDES[axes] * 15 // 16, SIDES[axes] * 7 // 8):
        problems: list[Problem] = []
        end = trace(items, (channels, *(side,) * axes), problems, fallback)
        if not problems:
            return (channels, *(max(1, side * side // n) if n > side else side for n in end.gives[1:]))
    return (channels, *(SIDES[axes],) * axes)
