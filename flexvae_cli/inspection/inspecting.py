"""Structures, configs, runs and models are read and traced, for `flexvae inspect`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from flexvae_cli import plugins
from flexvae_cli.api.trace import Reach, Shape, local, text
from flexvae_cli.errors import Problem, UsageError
from flexvae_cli.fallback import meta_fallback
from flexvae_cli.inspection.assumed_input import assumed_input
from flexvae_cli.inspection.inspection import Inspection, Line, Part
from flexvae_cli.net import Net, from_description
from flexvae_cli.structure import Item, Leaf, Structure, Sum, read_structure
from flexvae_cli.tracing import Fallback, Row, Trace, trace


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
