"""What a structure, a config, a run or a model is made of, layer by layer: the answer of `flexvae inspect`."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from flexvae_cli import plugins
from flexvae_cli.api.trace import Reach, Shape, local, text
from flexvae_cli.errors import Problem, UsageError
from flexvae_cli.fallback import meta_fallback
from flexvae_cli.inspection.assumed_input import assumed_input
from flexvae_cli.net import Net, from_description
from flexvae_cli.structure import Item, Leaf, Structure, Sum, read_structure
from flexvae_cli.tracing import Fallback, Row, Trace, trace

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


def inspect_target(target: Path | None, shape: Shape | None = None, overrides: Sequence[str] = ()) -> Inspection:
    """Read and trace whatever `target` is.

    Args:
        target: a structure file, a config, or what `find_model` takes for a model: a run, a checkpoint, a bundle, or a
            file of the last two; by default the working directory's config.
        shape: the input to trace with, (channels, *space), instead of the target's own.
        overrides: `KEY=VALUE` each, for a config.

    Raises:
        UsageError: everything that is wrong with the files, or with how their layers fit together.
        ModelError: a model's description is damaged, or names layers that are not installed.
    """
    if target is None or target.suffix == ".toml":
        return inspect_config(target, shape, overrides)
    if overrides:
        raise UsageError("--set changes the keys of a config, and this is none", where=str(target))
    if not target.exists():
        raise UsageError(
            "no such file or folder", where=str(target), hint="give a structure, a config, a run or a model"
        )
    if _is_model(target):
        return _model(target, shape)
    return _structure(read_structure(target, plugins.installed().registry), shape, meta_fallback())


def inspect_config(path: Path | None, shape: Shape | None = None, overrides: Sequence[str] = ()) -> Inspection:
    """Like `inspect_target`, for a file that is a config whatever its name; None is the working directory's.

    Raises:
        UsageError: everything that is wrong with the config and what it names.
    """
    from flexvae_cli.config import find_config, load_config
    from flexvae_cli.plan import net_of

    config = load_config(find_config(path), overrides)
    problems: list[Problem] = []
    registry = plugins.installed().registry.preferring(config.settings.plugins.prefer)
    net = net_of(config, registry, meta_fallback(), problems)
    if net is None or problems:
        raise UsageError(*problems)
    return _net(net, str(config.path), "config", shape)


def read_shape(written: str) -> Shape:
    """`3x256x256` -> (3, 256, 256).

    Raises:
        UsageError: it is no shape.
    """
    if not re.fullmatch(r"[0-9]{1,9}(x[0-9]{1,9}){1,3}", written, re.ASCII) or 0 in map(int, written.split("x")):
        raise UsageError(f"--input wants channels x size, as in 3x256x256, not '{written}'")
    return tuple(int(n) for n in written.split("x"))


def _is_model(target: Path) -> bool:
    """Whether a path is read, or refused, as a model is."""
    from flexvae_cli.engine.checkpoint import MODEL  # nothing of what is imported here imports torch
    from flexvae_cli.engine.tensorfiles import PICKLE_SUFFIXES

    return target.is_dir() or target.name == MODEL or target.suffix.lower() in {".safetensors", *PICKLE_SUFFIXES}


def _model(path: Path, shape: Shape | None) -> Inspection:
    from flexvae_cli.engine.modelfiles import find_model

    found = find_model(path)
    net = from_description(found.model, plugins.installed().registry, str(found.path), meta_fallback())
    return replace(_net(net, str(found.path), "model", shape), model=found)


def _net(net: Net, target: str, kind: Literal["config", "model"], shape: Shape | None) -> Inspection:
    shape = shape or net.shape
    problems: list[Problem] = []
    traces = net.traces(shape, problems)
    if problems:
        raise UsageError(*problems)
    middle = (Leaf("0", net.bottleneck, "model.bottleneck"),)
    encoder, bottleneck, decoder = traces
    parts = (
        _part("encoder", net.encoder, encoder, net.encoder.expanded(), local(len(shape) - 1)),
        _part("bottleneck", None, bottleneck, middle, encoder.reach),
        _part("decoder", net.decoder, decoder, net.decoder.expanded(), bottleneck.reach),
    )
    return Inspection(target, kind, shape, False, parts, net, _multiples(net))


def _multiples(net: Net) -> Shape | None:
    """Per axis, the distance between two sizes that come back as they went in, where it divides them."""
    try:
        one = net.fitting(net.shape[1:])
        next_one = net.fitting(tuple(n + 1 for n in one))
    except UsageError:
        return None
    steps = tuple(b - a for a, b in zip(one, next_one, strict=True))
    return steps if not any(n % step for n, step in zip(one, steps, strict=True)) else None


def _structure(structure: Structure, given: Shape | None, measured: Fallback) -> Inspection:
    shape = given or assumed_input(structure, measured)
    problems: list[Problem] = []
    items = structure.expanded()
    traced = trace(items, shape, problems, measured)
    if problems:
        hint = "" if given else f"the input {text(shape)} was assumed; choose one with --input"
        raise UsageError(*problems[:-1], replace(problems[-1], hint=problems[-1].hint or hint))
    part = _part("structure", structure, traced, items, local(len(shape) - 1))
    return Inspection(structure.name, "structure", shape, given is None, (part,))


def _part(name: str, structure: Structure | None, traced: Trace, items: Sequence[Item], reach: Reach) -> Part:
    lines: list[Line] = []
    _lines(items, iter(traced.rows), traced.takes, reach, lines)
    return Part(name, structure, traced, tuple(lines))


def _lines(
    items: Sequence[Item], rows: Iterator[Row], shape: Shape, reach: Reach, lines: list[Line]
) -> tuple[Shape, Reach]:
    """Add a line for each item, a residual entry before its layers; returns shape and reach behind the items."""
    for item in items:
        if isinstance(item, Sum):
            place = len(lines)
            after, body = _lines(item.body, rows, shape, reach, lines)
            _, shortcut = _lines(item.shortcut, rows, shape, reach, lines)
            lines.insert(place, Line(item.key, item.where, shape, after, body.union(shortcut)))
            shape, reach = after, body.union(shortcut)
        else:
            row = next(rows)
            lines.append(Line(row.key, row.where, row.takes, row.gives, row.reach, row))
            shape, reach = row.gives, row.reach
    return shape, reach


def short(summary: str) -> str:
    """The head of a docstring's first sentence: what the thing is, in a few words."""
    head = re.split(r"[.:;](?:\s|$)|[,(]", summary, maxsplit=1)[0]
    return textwrap.shorten(head, 32, placeholder=" ...")
