"""How a structure is run: cut into stages, each with its way, and with as many rows at a time as the memory allows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from torch import nn

from flexvae_cli.api import Shape
from flexvae_cli.engine.build import Addition
from flexvae_cli.engine.exact.activation import Activation, Make
from flexvae_cli.engine.exact.bands import How, Local, UncuttableError, Whole
from flexvae_cli.engine.exact.block import Block
from flexvae_cli.engine.exact.measure import needed
from flexvae_cli.engine.exact.proof import holds
from flexvae_cli.engine.exact.ways import Way, identity, way_of
from flexvae_cli.engine.fusing import joined
from flexvae_cli.structure import Item, Leaf, Sum

FAIR = 4  # times fewer rows, at most, that a faster way may have at a time


@dataclass(slots=True)
class Stage:
    """Layers that are run in one go, from file to file.

    Attributes:
        codes: of the layers.
        module, twin: the layers, and the same without memory, on the meta device.
        takes: (channels, *space).
        faster: both once more with neighbours as one, where there are such, which may take more memory.
        rows: of the output, at a time.
    """

    codes: tuple[str, ...]
    how: How
    module: nn.Module
    twin: nn.Module
    takes: Shape
    way: Way
    faster: tuple[nn.Module, nn.Module] | None = None
    rows: int = 1

    def hasten(self) -> None:
        """Take the faster way, where there is one."""
        if self.faster is not None:
            self.module, self.twin = self.faster

    def run(self, x: Activation, make: Make) -> Activation:
        """What the layers make of x."""
        return self.how.run(x, self.module, self.way, make, self.rows)


@dataclass(slots=True)
class Paths:
    """A residual entry that is more than local: both paths are run by themselves, and added."""

    body: list[Stage | Paths]
    shortcut: list[Stage | Paths]
    rows: int = 1
    takes: Shape = ()
    way: Way = field(default_factory=lambda: identity((1, 1)))

    def run(self, x: Activation, make: Make) -> Activation:
        """Both, added."""
        with ExitStack() as stack:
            one = stack.enter_context(run(self.body, x, make))
            other = stack.enter_context(run(self.shortcut, x, make)) if self.shortcut else x
            out = make(one.shape, 2)
            for first, end in out.bands(self.rows):
                out.write(first, one.read(first, end).add_(other.read(first, end)))
        return out


def run(stages: Sequence[Stage | Paths], x: Activation, make: Make) -> Activation:
    """One stage after the other; the files between them go as soon as they have been read."""
    source = x
    for stage in stages:
        after = stage.run(source, make)
        if source is not x:
            source.close()
        source = after
    return source


class Planner:
    """Cuts structures into stages.

    Args:
        folder: where the disk is.

    Attributes:
        fallen: codes that are run on the whole tensor.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.fallen: dict[str, None] = {}
        self._known: dict[tuple[str, ...], How | None] = {}

    def stages(self, items: Sequence[Item], module: nn.Module, twin: nn.Module, shape: Shape) -> list[Stage | Paths]:
        """The stages of a sequence of layers for an input (channels, *space)."""
        found: list[Stage | Paths] = []
        parts, twins = (list(cast(nn.Sequential, each)) for each in (module, twin))
        for group in _groups(items, shape):
            here = [place for place, _ in group]
            layers = [item for _, item in group]
            found += self._group(layers, [parts[n] for n in here], [twins[n] for n in here], shape)
            shape = found[-1].way.shape
        return found

    def _group(
        self, items: list[Item], parts: list[nn.Module], twins: list[nn.Module], shape: Shape
    ) -> list[Stage | Paths]:
        module, twin = nn.Sequential(*parts), nn.Sequential(*twins)  # numbered from 0, wherever they stand
        how = self._how(items, module, twin, shape)
        if how is not None:
            way = way_of(items, shape)
            assert way is not None
            return [Stage(_codes(items), how, module, twin, shape, way, _faster(how, module, twin))]
        if len(items) == 1:
            return [self._alone(items[0], module, twin, shape)]
        found: list[Stage | Paths] = []
        for item, part, other in zip(items, parts, twins, strict=True):
            found += self._group([item], [part], [other], shape)
            shape = found[-1].way.shape
        return found

    def _alone(self, item: Item, module: nn.Sequential, twin: nn.Sequential, shape: Shape) -> Stage | Paths:
        """An item that is not run in bands as it is."""
        if isinstance(item, Sum):
            return self._paths(item, module[0], twin[0], shape)
        self.fallen[item.bound.code] = None
        way = way_of([item], shape) or identity(_measured(item, shape))
        return Stage((item.bound.code,), Whole(), module, twin, shape, way)

    def _paths(self, item: Sum, module: nn.Module, twin: nn.Module, shape: Shape) -> Paths:
        real, meta = cast(Addition, module), cast(Addition, twin)
        body = self.stages(item.body, real.body, meta.body, shape)
        shortcut = self.stages(item.shortcut, real.shortcut, meta.shortcut, shape)
        return Paths(body, shortcut, takes=shape, way=body[-1].way)

    def _how(self, items: list[Item], module: nn.Sequential, twin: nn.Sequential, shape: Shape) -> How | None:
        """The way to run layers in bands, None where there is none."""
        codes = _codes(items)
        if codes not in self._known:
            how = _candidate(items, twin, shape)
            self._known[codes] = how if how is not None and holds(how, items, module, shape, self.folder) else None
        return self._known[codes]


def _groups(items: Sequence[Item], shape: Shape) -> Iterator[list[tuple[int, Item]]]:
    """Neighbours that are run together, with their places: what only scales, bends or shifts numbers goes along with
    its neighbour, and what is enlarged goes straight into the next layer, so that neither is stored by itself."""
    group: list[tuple[int, Item]] = []
    way: Way | None = None
    for place in enumerate(items):
        after = way_of([place[1]], shape)
        joins = way is not None and after is not None and after.local and (after.still or way.still or way.grows)
        if group and not joins:
            yield group
            group = []
        way = way.then(after) if group and way is not None and after is not None else after
        group.append(place)
        shape = after.shape if after is not None else _measured(place[1], shape)
    if group:
        yield group


def _candidate(items: Sequence[Item], module: nn.Sequential, shape: Shape) -> How | None:
    """A way that may do, to be tried."""
    closed, local = [], True
    for item, layer in zip(items, module, strict=True):
        way = way_of([item], shape)
        if way is None:
            return None
        if way.local:
            closed.append(layer)
        elif isinstance(item, Sum):
            return None
        local, shape = local and way.local, way.shape
    if local:
        return Local()
    try:
        return Block(module, closed)
    except UncuttableError:
        return None


def _faster(how: How, module: nn.Sequential, twin: nn.Sequential) -> tuple[nn.Module, nn.Module] | None:
    """Layers that only look around them, with neighbours as one."""
    if not isinstance(how, Local):
        return None
    one, other = joined(module), joined(twin)
    return None if one is None or other is None else (one, other)


def _measured(item: Item, shape: Shape) -> Shape:
    """The output of an item of which some layer has no rule."""
    from flexvae_cli.fallback import meta_fallback
    from flexvae_cli.tracing import trace

    return trace([item], shape, [], meta_fallback()).gives


def _codes(items: Sequence[Item]) -> tuple[str, ...]:
    """What tells layers from others."""
    found: list[str] = []
    for item in items:
        if isinstance(item, Leaf):
            found.append(item.bound.code)
        else:
            found += ["(", *_codes(item.body), "+", *_codes(item.shortcut), ")"]
    return tuple(found)


# ---------------------------------------------------------------------------------------------------------- memory


def fit(stages: Sequence[Stage | Paths], budget: int) -> int:
    """Give every stage as many rows at a time as fit into so many bytes.

    Returns:
        The bytes that the most needy of those needs that do not fit with a single row; 0 where all fit.
    """
    return _fit(stages, budget, {})


def _fit(
    stages: Sequence[Stage | Paths], budget: int, known: dict[tuple[tuple[str, ...], Shape], tuple[bool, int, int]]
) -> int:
    """`fit`; `known` has what was chosen for layers and inputs that were met before."""
    missing = 0
    for stage in stages:
        if isinstance(stage, Paths):
            shape = stage.way.shape
            row = 4 * shape[0] * math.prod(shape[2:])
            stage.rows = max(1, min(shape[1], budget // (2 * row)))
            taken = max(_fit(stage.body, budget, known), _fit(stage.shortcut, budget, known), 2 * row)
        else:
            key = stage.codes, stage.takes
            faster, stage.rows, taken = known[key] = known.get(key) or _chosen(stage, budget)
            if faster:
                stage.hasten()
        missing = max(missing, taken if taken > budget else 0)
    return missing


def _chosen(stage: Stage, budget: int) -> tuple[bool, int, int]:
    """Whether the faster way is taken, the rows that fit, and the bytes that they take.

    It must have a fair number of rows as well, for what it makes of its weights it makes for every band anew, or fit
    where the other does not.
    """
    rows, taken = _rows(stage, stage.twin, budget)
    if stage.faster is not None:
        fewer, more = _rows(stage, stage.faster[1], budget)
        if (more <= budget and FAIR * fewer >= rows) or more < taken > budget:
            return True, fewer, more
    return False, rows, taken


def _rows(stage: Stage, twin: nn.Module, budget: int) -> tuple[int, int]:
    """The rows of a stage that fit, one at least, and the bytes that they take."""
    rows = stage.way.shape[1]
    while (taken := needed(stage.how, twin, stage.takes, stage.way, rows)) > budget:
        if rows == 1 or isinstance(stage.how, Whole):
            break
        rows = (rows + 1) // 2
    return rows, taken
