"""A layer that looks at all positions at once, cut where it does so.

torch.fx writes down which operations the layer's forward consists of. Its norms and its attention are barriers: in a
pass over all bands what they need of every position is gathered, and what goes into them is kept in a file, so that
nothing is computed twice. The last pass computes the output. No layer has to declare anything for it; whether the
cutting is right for a layer is proved beforehand, in `proof.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from flexvae_cli.engine.exact.activation import Activation, Make
from flexvae_cli.engine.exact.attention import attend
from flexvae_cli.engine.exact.bands import UncuttableError, in_bands
from flexvae_cli.engine.exact.moments import Moments
from flexvae_cli.engine.exact.ways import Piece, Way


class _Tracer(fx.Tracer):  # type: ignore[misc, unused-ignore]
    """Looks into everything but torch's own layers and those that are local."""

    def __init__(self, closed: Collection[nn.Module]) -> None:
        super().__init__()
        self.closed = closed

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return any(m is each for each in self.closed) or super().is_leaf_module(m, module_qualified_name)


class Block:
    """The operations of a run of layers.

    Args:
        module: the layers, or their twin on the meta device.
        closed: modules in it that are local, and not looked into.

    Raises:
        UncuttableError: its operations depend on what comes in, or it attends in a way that is not known here.
    """

    def __init__(self, module: nn.Module, closed: Collection[nn.Module] = ()) -> None:
        try:
            self.graph = _Tracer(closed).trace(module)
        except Exception as error:  # a stranger's forward, run on a stand-in for a tensor
            raise UncuttableError(f"its operations cannot be written down: {error}") from error
        self.input = next(node for node in self.graph.nodes if node.op == "placeholder")
        self.output = next(node for node in self.graph.nodes if node.op == "output").args[0]
        self.norms = {node for node in self.graph.nodes if _is_norm(node, module)}
        self.attentions = {node: _operands(node) for node in self.graph.nodes if _attends(node)}

    def run(self, x: Activation, module: nn.Module, way: Way, make: Make, rows: int) -> Activation:
        """What `module` makes of x; see `Local.run`."""
        with ExitStack() as stack:
            work = _Work(self, module, way, x, make, stack)
            for node in (node for node in self.graph.nodes if node in self.norms or node in self.attentions):
                work.gather(node, max(1, int(rows * way.reach.stride[0])))
            return in_bands(x, way, make, rows, lambda piece: work.values([self.output], piece)[0])


class _Work:
    """One run of a block: the files of what is kept, and what the barriers have gathered."""

    def __init__(self, block: Block, module: nn.Module, way: Way, x: Activation, make: Make, stack: ExitStack) -> None:
        self.block, self.module, self.way, self.make, self.stack = block, module, way, make, stack
        self.rows = x.rows
        self.device = next((p.device for p in module.parameters()), torch.device("cpu"))
        self.files: dict[fx.Node, Activation] = {block.input: x}
        self.moments: dict[fx.Node, Moments] = {}

    def gather(self, barrier: fx.Node, rows: int) -> None:
        """Pass over all bands for a barrier, where what it needs is in no file yet."""
        norm = barrier in self.block.norms
        inputs = [barrier.all_input_nodes[0]] if norm else list(self.block.attentions[barrier][1:])
        new = [node for node in dict.fromkeys(inputs) if node not in self.files]
        found: dict[fx.Node, Activation] = {}
        for first, end in self.files[self.block.input].bands(rows) if new else ():
            piece = self.way.piece(first, end, self.rows, inside=True)
            for node, value in zip(new, self.values(new, piece), strict=True):
                axis = 2 if norm else -2
                self._keep(found, node, self._inner(value, piece, first, end, axis), first, end, axis)
        self.files |= found
        if norm:
            self.moments[barrier] = self._moments(inputs[0])

    def _moments(self, node: fx.Node) -> Moments:
        moments = self.files[node].moments
        if moments is None:
            raise UncuttableError("what it normalises it attends to as well")
        return moments

    def _inner(self, value: Tensor, piece: Piece, first: int, end: int, axis: int) -> Tensor:
        """A value without the rows around `first` to `end`."""
        if value.dim() < 3 or value.shape[0] != 1 or value.shape[axis] % (piece.end - piece.begin):
            raise UncuttableError("its norms or its attention work at another resolution")
        times = value.shape[axis] // (piece.end - piece.begin)
        return value.narrow(axis, (first - piece.begin) * times, (end - first) * times)

    def _keep(
        self, found: dict[fx.Node, Activation], node: fx.Node, value: Tensor, first: int, end: int, axis: int
    ) -> None:
        """Put rows of a value into its file."""
        times = value.shape[axis] // (end - first)
        if node not in found:
            shape = (*value.shape[:axis], self.rows * times, *value.shape[axis + 1 :])
            found[node] = self.stack.enter_context(self.make(shape, axis))
        found[node].write(first * times, value)

    def _kept(self, node: fx.Node, piece: Piece) -> Tensor:
        file = self.files[node]
        times = file.rows // self.rows
        return file.read(piece.begin * times, piece.end * times).to(self.device)

    # ------------------------------------------------------------------------------------------------- one band

    def values(self, wanted: Sequence[fx.Node], piece: Piece) -> list[Any]:
        """The values of nodes on a band, each operation run once, nothing held longer than it is needed."""
        needed = self._needed(wanted)
        uses = Counter([*wanted, *(arg for node in needed for arg in self._arguments(node))])
        values: dict[fx.Node, Any] = {}
        for node in needed:
            values[node] = self._value(node, values, piece)
            for argument in self._arguments(node):
                uses[argument] -= 1
                if not uses[argument]:
                    del values[argument]
        return [values[node] for node in wanted]

    def _needed(self, wanted: Sequence[fx.Node]) -> list[fx.Node]:
        needed, waiting = set(), list(wanted)
        while waiting:
            node = waiting.pop()
            if node not in needed:
                needed.add(node)
                waiting += self._arguments(node)
        return [node for node in self.block.graph.nodes if node in needed]

    def _arguments(self, node: fx.Node) -> list[fx.Node]:
        if node in self.files:
            return []
        return [self.block.attentions[node][0]] if node in self.block.attentions else node.all_input_nodes

    def _value(self, node: fx.Node, values: dict[fx.Node, Any], piece: Piece) -> Any:
        if node in self.files:
            return self._kept(node, piece)
        if node in self.moments:
            norm = self.module.get_submodule(str(node.target))
            assert isinstance(norm, nn.GroupNorm)
            return self.moments[node].normalised(values[node.all_input_nodes[0]], norm)
        if node in self.block.attentions:
            query, key, value = self.block.attentions[node]
            scale: Any = node.kwargs.get("scale")
            return attend(values[query], self.files[key], self.files[value], scale)
        if node.op == "get_attr":
            return _attribute(self.module, str(node.target))
        args: Any = fx.map_arg(node.args, values.__getitem__)
        kwargs: Any = fx.map_arg(node.kwargs, values.__getitem__)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        called: Any = self.module.get_submodule(str(node.target)) if node.op == "call_module" else node.target
        return called(*args, **kwargs)


def _is_norm(node: fx.Node, module: nn.Module) -> bool:
    return node.op == "call_module" and isinstance(module.get_submodule(str(node.target)), nn.GroupNorm)


def _attends(node: fx.Node) -> bool:
    return node.op == "call_function" and node.target is F.scaled_dot_product_attention


def _operands(node: fx.Node) -> tuple[fx.Node, fx.Node, fx.Node]:
    """Query, key and value."""
    if len(node.args) != 3 or set(node.kwargs) - {"scale"}:
        raise UncuttableError("its attention has a mask")
    query, key, value = (each for each in node.args if isinstance(each, fx.Node))
    return query, key, value


def _attribute(module: Any, path: str) -> Any:
    for name in path.split("."):
        module = getattr(module, name)
    return module
