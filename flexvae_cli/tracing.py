"""Follows a shape through an expanded net by the layers' static rules: shapes, parameters, multiply-adds, reach."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from flexvae_cli.api.spec import LayerSpec
from flexvae_cli.api.trace import Reach, Shape, ShapeError, Step, local, text
from flexvae_cli.codes import Bound
from flexvae_cli.errors import Problem
from flexvae_cli.rules import RuleError, traced
from flexvae_cli.structure import Item, Leaf, Sum

Fallback = Callable[[Bound, Shape], Step]
"""Measures a layer that has no rule of its own; the engine offers one that runs it on torch's meta device."""


@dataclass(frozen=True, slots=True)
class Row:
    """One layer of the net at its input shape.

    Attributes:
        key: its place, `3` or `3.body.0`.
        bound: the code.
        takes, gives: shapes, (channels, *space).
        reach: which inputs of the *whole trace* one of its outputs sees.
        ruled: False where the figures come from a run on torch's meta device, not from a rule.
    """

    key: str
    bound: Bound
    where: str
    takes: Shape
    gives: Shape
    parameters: int
    macs: int
    reach: Reach
    notes: tuple[str, ...]
    ruled: bool


@dataclass(frozen=True, slots=True)
class Trace:
    """What came of following a shape; `complete` is False where it had to stop."""

    rows: tuple[Row, ...]
    takes: Shape
    gives: Shape
    reach: Reach
    complete: bool

    @property
    def parameters(self) -> int:
        return sum(row.parameters for row in self.rows)

    @property
    def macs(self) -> int:
        return sum(row.macs for row in self.rows)


@dataclass(frozen=True, slots=True)
class Flow:
    """What arrives at an item, and in words from where."""

    shape: Shape
    reach: Reach
    origin: str


class Tracer:
    """Traces one item after the other; problems are collected, and a wrong channel count does not end the trace."""

    def __init__(self, problems: list[Problem], fallback: Fallback | None) -> None:
        self.problems = problems
        self.fallback = fallback
        self.rows: list[Row] = []

    def follow(self, items: Iterable[Item], flow: Flow) -> Flow | None:
        """What comes out behind the items, or None where the trace ends before."""
        for item in items:
            after = self._leaf(item, flow) if isinstance(item, Leaf) else self._sum(item, flow)
            if after is None:
                return None
            flow = after
        return flow

    def _leaf(self, leaf: Leaf, flow: Flow) -> Flow | None:
        step = self._step(leaf, flow)
        if step is None:
            return None
        reach = flow.reach.then(step.reach)
        ruled = isinstance(leaf.bound.spec, LayerSpec) and leaf.bound.spec.trace is not None
        figures = (step.parameters, step.macs, reach, step.notes, ruled)
        self.rows.append(Row(leaf.key, leaf.bound, leaf.where, flow.shape, step.shape, *figures))
        return Flow(step.shape, reach, f"from {_place(leaf)} {leaf.bound.code}")

    def _step(self, leaf: Leaf, flow: Flow) -> Step | None:
        spec, shape = leaf.bound.spec, flow.shape
        if not isinstance(spec, LayerSpec):
            raise TypeError(f"{spec.kind} {spec.name} cannot stand in a net")
        if spec.dims is not None and spec.dims != len(shape) - 1:
            self._wrong(
                leaf, f"works on {spec.dims}-D data; {text(shape)} has {len(shape) - 1} axes behind its channels"
            )
            return None
        try:
            if spec.trace is not None:
                return traced(leaf.bound, shape)
            return self.fallback(leaf.bound, shape) if self.fallback else None
        except RuleError as fault:
            self.problems.append(Problem(f"{leaf.bound.code}: {fault}", leaf.where))
            return None
        except ShapeError as error:
            self._wrong(leaf, f"{error} {flow.origin}")
            if error.expected is None or error.expected == shape[0]:
                return None
            # go on as if the right channels had come
            return self._step(leaf, replace(flow, shape=(error.expected, *shape[1:])))
        except ValueError as error:
            self._wrong(leaf, str(error))
            return None

    def _sum(self, item: Sum, flow: Flow) -> Flow | None:
        body = self.follow(item.body, flow)
        shortcut = self.follow(item.shortcut, flow)
        if body is None or shortcut is None:
            return None
        if body.shape != shortcut.shape:
            paths = f"the residual gives {text(body.shape)}, its shortcut {text(shortcut.shape)}"
            what = f"{paths}; they must be the same to be added"
            self.problems.append(Problem(what, item.where))
            return None
        return Flow(body.shape, body.reach.union(shortcut.reach), f"from the residual {_place(item)}")

    def _wrong(self, leaf: Leaf, what: str) -> None:
        self.problems.append(Problem(f"{leaf.bound.code} {what}", leaf.where))


def _place(item: Item) -> str:
    """An item's place without the folders of its file."""
    return item.where.rpartition("/")[2]


def trace(
    items: Iterable[Item],
    shape: Shape,
    problems: list[Problem],
    fallback: Fallback | None = None,
    reach: Reach | None = None,
    origin: str = "with the data",
) -> Trace:
    """Follow `shape` (channels, *space) through the items.

    Args:
        items: an expanded net.
        shape: what goes in.
        problems: what does not fit is added here.
        fallback: measures layers without a rule; without it the trace ends at such a layer.
        reach: the reach of what stands before, for one trace over several nets.
        origin: where the input comes from, for messages.
    """
    tracer = Tracer(problems, fallback)
    start = Flow(shape, reach or local(len(shape) - 1), origin)
    end = tracer.follow(items, start)
    rows = tuple(tracer.rows)
    if end is not None:
        return Trace(rows, shape, end.shape, end.reach, complete=True)
    gives, reached = (rows[-1].gives, rows[-1].reach) if rows else (shape, start.reach)
    return Trace(rows, shape, gives, reached, complete=False)
