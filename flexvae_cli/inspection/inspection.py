"""What is known of a structure, a config, a run or a model, layer by layer."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Literal

from flexvae_cli.api.trace import Reach, Shape, text
from flexvae_cli.errors import UsageError
from flexvae_cli.net import Net
from flexvae_cli.structure import Structure
from flexvae_cli.tracing import Row, Trace

if TYPE_CHECKING:
    from flexvae_cli.engine.modelfiles import ModelFiles


@dataclass(frozen=True, slots=True)
class Line:
    """A layer of the expanded net, or a residual entry, whose layers follow it.

    Attributes:
        key: its place, `3` or `3.body.0`.
        takes, gives: shapes, (channels, *space).
        reach: which positions of the target's input one of its outputs sees.
        row: the layer's trace; None for a residual entry.
    """

    key: str
    where: str
    takes: Shape
    gives: Shape
    reach: Reach
    row: Row | None = None

    @property
    def code(self) -> str:
        return self.row.bound.code if self.row else "residual"

    @property
    def layer(self) -> str:
        """What the layer is, in a few words."""
        return short(self.row.bound.spec.summary) if self.row else "Sum of body and shortcut"

    @property
    def parameters(self) -> int:
        return self.row.parameters if self.row else 0

    @property
    def macs(self) -> int:
        return self.row.macs if self.row else 0

    @property
    def notes(self) -> tuple[str, ...]:
        return self.row.notes if self.row else ()


@dataclass(frozen=True, slots=True)
class Part:
    """One list of layers of the target: `encoder`, `bottleneck`, `decoder`, or `structure` where it stands alone."""

    name: str
    structure: Structure | None
    trace: Trace
    lines: tuple[Line, ...]


@dataclass(frozen=True, slots=True)
class Note:
    """What a good engineer would point out, and the layers that it is about."""

    text: str
    places: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Inspection:
    """All that is known of a target at one input shape.

    Attributes:
        target: what was inspected, as a person would write it.
        shape: the input, (channels, *space).
        assumed: the input was neither given nor recorded.
        net: the autoencoder; None for a lone structure.
        multiples: per axis, the number that divides every size that comes back as large as it went in.
        model: the verified files of a model.
    """

    target: str
    kind: Literal["structure", "config", "model"]
    shape: Shape
    assumed: bool
    parts: tuple[Part, ...]
    net: Net | None = None
    multiples: Shape | None = None
    model: ModelFiles | None = None

    @property
    def flexvae(self) -> str | None:
        """The version of FlexVAE that made a model."""
        return self.model.model.get("flexvae") if self.model else None

    @property
    def plugins(self) -> dict[str, str]:
        """Distribution -> version of every plugin that the codes come from; those of a model as it records them."""
        if self.model is not None:
            return dict(self.model.model["plugins"])
        structures = [part.structure for part in self.parts if part.structure]
        return self.net.distributions if self.net else structures[0].distributions

    @property
    def bits(self) -> dict[str, int]:
        """The bits of a model's weights by layer, as in `encoder.3`; float32 where nothing is said."""
        return dict(self.model.quantized.get("layers", {})) if self.model else {}

    @property
    def parameters(self) -> int:
        return sum(part.trace.parameters for part in self.parts)

    @property
    def macs(self) -> int:
        return sum(part.trace.macs for part in self.parts)

    @property
    def gives(self) -> Shape:
        return self.parts[-1].trace.gives

    @property
    def latent(self) -> Shape | None:
        return self.parts[1].trace.gives if self.net else None

    @property
    def compression(self) -> float | None:
        """How many times fewer numbers the latent has than the input."""
        return prod(self.shape) / prod(self.latent) if self.latent else None

    @property
    def notes(self) -> tuple[Note, ...]:
        """The layers' notes, equal ones together, then those on the whole net."""
        places: dict[str, list[tuple[str, str]]] = {}
        for part in self.parts:
            for line in part.lines:
                for note in line.notes:
                    places.setdefault(note, []).append((part.name, line.key))
        whole = self._size_note()
        return (*(Note(note, tuple(at)) for note, at in places.items()), *((Note(whole),) if whole else ()))

    def _size_note(self) -> str:
        if self.net is None or self.gives == self.shape:
            return ""
        what = f"the decoder gives {text(self.gives)}, the encoder takes {text(self.shape)}"
        if self.gives[0] != self.shape[0]:
            return f"{what}: the channels must be the same to train"
        try:
            fitting = self.net.fitting(self.shape[1:])
        except UsageError:
            return f"{what}; no size near it comes back as large as it went in"
        return f"{what}: to train, choose {text(fitting)}; elsewhere samples are padded to that and cropped back"


def short(summary: str) -> str:
    """The head of a docstring's first sentence: what the thing is, in a few words."""
    head = re.split(r"[.:;](?:\s|$)|[,(]", summary, maxsplit=1)[0]
    return textwrap.shorten(head, 32, placeholder=" ...")
