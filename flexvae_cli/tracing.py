"""Follows a shape through an expanded net by the layers' static rules: shapes, parameters, multiply-adds, reach."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from flexvae_cli.api.spec import LayerSpec
from flexvae_cli.api.trace import Reach, Shape, ShapeError, Step, local, text
from flexvae_cli.codes import Bound
from flexvae_cli.errors import Problem
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


class Tracer:
    """Traces one item after the other; problems are collected, and a wrong channel count does not end the trace."""

    def __init__(self, problems: list[Problem], fallback: Fallback | None, origin: str) -> None:
        self.problems = problems
        self.fallback = fallback
        self.origin = origin
        self.rows: list[Row] = []

    def follow(self, items: Iterable[Item], shape: Shape, reach: Reach) -> tuple[Shape, Reach] | None:
        """The shape and reach behind the items, or None where the trace ends before."""
        for item in items:
            one = self._leaf if isinstance(item, Leaf) else self._sum
            after = one(item, shape, reach)  # type: ignore[arg-type]
            if after is None:
                return None
            shape, reach = after
        return shape, reach

    def _leaf(self, leaf: Leaf, shape: Shape, reach: Reach) -> tuple[Shape, Reach] | None:
        step = self._step(leaf, shape)
        if step is None:
            return None
        reach = reach.then(step.reach)
        ruled = isinstance(leaf.bound.spec, LayerSpec) and leaf.bound.spec.trace is not None
        figures = (step.parameters, step.macs, reach, step.notes, ruled)
        self.rows.append(Row(leaf.key, leaf.bound, leaf.where, shape, step.shape, *figures))
        return step.shape, reach

    def _step(self, leaf: Leaf, shape: Shape) -> Step | None:
        spec, values = leaf.bound.spec, leaf.bound.values
        if not isinstance(spec, LayerSpec):
            raise TypeError(f"{spec.kind} {spec.name} cannot stand in a net")
        if spec.dims is not None and spec.dims != len(shape) - 1:
            self._wrong(
                leaf, f"works on {spec.dims}-D data; {text(shape)} has {len(shape) - 1} axes behind its channels"
            )
            return None
        try:
            rule = spec.rule(values)
            if rule is not None:
                return rule(shape)
            return self.fallback(leaf.bound, shape) if self.fallback else None
        except ShapeError as error:
            self._wrong(leaf, str(error) + self._origin())
            if error.expected is None or error.expected == shape[0]:
                return None
            return self._step(leaf, (error.expected, *shape[1:]))  # go on as if the right channels had come
        except ValueError as error:
            self._wrong(leaf, str(error))
            return None

    def _sum(self, item: Sum, shape: Shape, reach: Reach) -> tuple[Shape, Reach] | None:
        body = self.follow(item.body, shape, reach)
        shortcut = self.follow(item.shortcut, shape, reach)
        if body is None or shortcut is None:
            return None
        if body[0] != shortcut[0]:
            paths = f"the residual gives {text(body[0])}, its shortcut {text(shortcut[0])}"
            what = f"{paths}; they must be the same to be added"
            self.problems.append(Problem(what, item.where))
            return None
        return body[0], body[1].union(shortcut[1])

    def _wrong(self, leaf: Leaf, what: str) -> None:
        self.problems.append(Problem(f"{leaf.bound.code} {what}", leaf.where))

    def _origin(self) -> str:
        if not self.rows:
            return f" {self.origin}"
        before = self.rows[-1]
        return f" from {before.where.rpartition('/')[2]} {before.bound.code}"


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
    tracer = Tracer(problems, fallback, origin)
    start = reach or local(len(shape) - 1)
    end = tracer.follow(items, shape, start)
    last = (tracer.rows[-1].gives, tracer.rows[-1].reach) if tracer.rows else (shape, start)
    gives, reached = end or last
    return Trace(tuple(tracer.rows), shape, gives, reached, complete=end is not None)
