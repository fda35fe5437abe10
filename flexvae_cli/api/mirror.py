"""Mirror rules: what a decoder has for a layer of the encoder, so that shapes go back the way they came.

A rule is a pure function from a layer (`Original`) to what stands for it in the decoder (`Mirrored`); `mirror=` of
`layer` names it. It raises `ValueError` where there is nothing that fits, saying what to write by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from flexvae_cli.api.trace import Shape

Upsampling = Literal["nearest", "pixel-shuffle", "transposed"]
UPSAMPLINGS: tuple[Upsampling, ...] = ("nearest", "pixel-shuffle", "transposed")
"""What stands for a stride: UpS and a convolution, a convolution and PS, or a transposed convolution."""


class Part(NamedTuple):
    """A layer to write: a name, and the parameters that differ from their defaults, by their Python names."""

    name: str
    values: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Original:
    """A layer of an encoder, as its mirror rule sees it.

    Attributes:
        name: its abbreviation.
        values: every parameter, defaults included.
        axes: the number of spatial axes of the data.
        upsampling: what the user wants to stand for a stride.
        margin: the positions that padding layers in front have added to each axis, both sides together, and that no
            layer has accounted for yet.
    """

    name: str
    values: Mapping[str, Any]
    axes: int
    upsampling: Upsampling
    margin: Shape

    def like(self, **changes: Any) -> Part:
        """The same layer with other values for some parameters."""
        return Part(self.name, {**self.values, **changes})


@dataclass(frozen=True, slots=True)
class Mirrored:
    """What stands for a layer in the decoder.

    Attributes:
        parts: layers in the decoder's order; none where the decoder has nothing for it.
        keeps_order: whether neighbours that keep their order stay in the order of the encoder: a norm that stands
            before its activation stands before it in the decoder as well.
        margin: what is left of the margin behind the layer; None where that is what came in.
    """

    parts: tuple[Part, ...]
    keeps_order: bool = False
    margin: Shape | None = None


MirrorRule = Callable[[Original], Mirrored]
