"""A decoder made from an encoder: every layer by the mirror rule of its spec, in reversed order, and traced before use.

Repeats stay repeats. A residual around its input keeps the shape, so it stands in the decoder as it is; one with a
shortcut of its own has both paths mirrored.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from flexvae_cli.api.mirror import Original, Part, Upsampling
from flexvae_cli.api.trace import Shape, text
from flexvae_cli.codes import Bound, bind, canonical, parse
from flexvae_cli.errors import Problem, UsageError
from flexvae_cli.net import Net, make_net
from flexvae_cli.registry import Registered, Registry
from flexvae_cli.rules import RuleError, mirrored, traced
from flexvae_cli.structure import Layer, Leaf, Node, Repeat, Residual, Structure, parse_structure
from flexvae_cli.tracing import Fallback, Row, Trace, trace

PADDED = "a padding in front of it, or in it, is taken up by no convolution"
UNPAD = "put the padding right in front of its convolution, or write the decoder by hand"


def mirror_of(
    encoder: Structure,
    bottleneck: str,
    shape: Shape,
    registry: Registry,
    fallback: Fallback | None,
    upsampling: Upsampling = "nearest",
) -> Net:
    """The autoencoder of an encoder and the decoder that mirrors it, at the first size from `shape` up that comes back.

    Args:
        encoder: what is mirrored.
        bottleneck: the code of what stands between; the decoder takes as many channels as it leaves.
        shape: a sample, (channels, *space).
        registry: the specs whose codes the decoder may use.
        fallback: measures layers that have no static rule.
        upsampling: what stands for a stride.

    Raises:
        UsageError: the encoder does not take `shape`, layers cannot be mirrored (each is named, with what to write by
            hand), or no size comes back as large as it went in.
    """
    problems: list[Problem] = []
    followed = trace(encoder.expanded(), shape, problems, fallback)
    if problems:
        raise UsageError(*problems)
    zero = (0,) * (len(shape) - 1)
    maker = _Maker(registry, zero, upsampling, {row.where: row for row in reversed(followed.rows)}, problems)
    document, margin = maker.turned(encoder.nodes, zero)
    if any(margin):
        maker.wrong(encoder.name, PADDED, UNPAD)
    if not document:
        maker.wrong(encoder.name, "has nothing that a decoder has a counterpart of", "write the decoder by hand")
    if problems:
        raise UsageError(*problems)
    document = _for_latent(document, encoder, bottleneck, followed, maker, fallback)
    return _verified(encoder, bottleneck, document, shape, registry, fallback)


def _for_latent(
    document: list[Any],
    encoder: Structure,
    bottleneck: str,
    followed: Trace,
    maker: _Maker,
    fallback: Fallback | None,
) -> list[Any]:
    """The decoder with a first layer for as many channels as the bottleneck leaves."""
    middle = make_net(encoder, bottleneck, encoder, followed.gives, maker.registry, fallback).bottleneck
    problems = maker.problems
    latent = trace((Leaf("0", middle, "bottleneck"),), followed.gives, problems, fallback, origin="from the encoder")
    if not problems and latent.gives[1:] != followed.gives[1:]:
        problems.append(Problem(f"{middle.code} changes the size; write the decoder by hand", "bottleneck"))
    if problems:
        raise UsageError(*problems)
    wide, narrow = followed.gives[0], latent.gives[0]
    if wide == narrow:
        return document
    found = _with_input(document, latent.gives, maker.registry)
    if found is not None:
        return found
    adapter = Part(f"C{len(latent.gives) - 1}d", {"in_channels": narrow, "out_channels": wide, "kernel_size": 1})
    return [*filter(None, [maker.code(adapter, "bottleneck")]), *document]


def _with_input(document: list[Any], shape: Shape, registry: Registry) -> list[Any] | None:
    """The decoder for an input of other channels, where its first layer that counts them names its `in_channels`."""
    for index, entry in enumerate(document):
        code = parse(entry, "", []) if isinstance(entry, str) else None
        found = registry.find("layer", code.name) if code is not None and code.count == 1 else None
        bound = bind(code, found.spec, "", []) if code is not None and isinstance(found, Registered) else None
        if bound is None:
            return None
        changed = {**bound.values, "in_channels": shape[0]} if "in_channels" in bound.values else bound.values
        bound = Bound(bound.spec, changed)
        try:
            step = traced(bound, shape)
        except ValueError:  # it takes other channels, or groups do not divide them
            return None
        if "in_channels" in changed:
            return [*document[:index], bound.code, *document[index + 1 :]]
        if step is None or step.shape[0] != shape[0]:
            return None
        shape = step.shape
    return None


def _verified(
    encoder: Structure,
    bottleneck: str,
    document: list[Any],
    shape: Shape,
    registry: Registry,
    fallback: Fallback | None,
) -> Net:
    decoder = parse_structure(document, registry, "the mirrored decoder")
    net = make_net(encoder, bottleneck, decoder, shape, registry, fallback)
    try:
        net = replace(net, shape=(shape[0], *net.fitting(shape[1:])))
        net.checked()
    except UsageError:
        problems: list[Problem] = []
        gives = text(net.traces(shape, problems)[2].gives)
        stops = f"stops at {text(shape)}, {problems[0].what}" if problems else f"makes {gives} of {text(shape)}"
        what = f"the mirrored decoder {stops}; no size near it comes back as it went in"
        raise UsageError(what, where=encoder.name, hint="write the decoder by hand") from None
    return net


@dataclass(frozen=True, slots=True)
class _Piece:
    """What stands for one entry of the encoder."""

    entries: tuple[Any, ...]
    keeps_order: bool = False


@dataclass
class _Maker:
    """Mirrors entry by entry; `rows` are the layers of the trace by where they stand."""

    registry: Registry
    zero: Shape
    upsampling: Upsampling
    rows: dict[str, Row]
    problems: list[Problem]

    def wrong(self, where: str, what: str, hint: str) -> None:
        self.problems.append(Problem(what, where, hint=hint))

    def turned(self, nodes: Iterable[Node], margin: Shape) -> tuple[list[Any], Shape]:
        """The entries in the decoder's order, and the margin behind the last node."""
        pieces = []
        for node in nodes:
            piece, margin = self.node(node, margin)
            pieces.append(piece)
        found: list[Any] = []
        for keeps_order, run in groupby(reversed(pieces), key=lambda piece: piece.keeps_order):
            together = list(run)
            for piece in reversed(together) if keeps_order else together:
                found += piece.entries
        return found, margin

    def node(self, node: Node, margin: Shape) -> tuple[_Piece, Shape]:
        if isinstance(node, Layer):
            return self.layer(node, margin)
        if isinstance(node, Residual) and not node.shortcut:
            return _Piece((_written(node),)), margin
        if any(margin):
            self.wrong(node.where, PADDED, UNPAD)
        if isinstance(node, Repeat):
            body = self.closed(node.body, node.where)
            return _Piece(({"repeat": node.count, "layers": body},) if body else ()), self.zero
        paths = {"residual": self.closed(node.body, node.where), "shortcut": self.closed(node.shortcut, node.where)}
        if not paths["residual"]:
            self.wrong(node.where, "its residual has nothing that a decoder has a counterpart of", "write it by hand")
        return _Piece(({key: path for key, path in paths.items() if path},)), self.zero

    def closed(self, nodes: Sequence[Node], where: str) -> list[Any]:
        entries, margin = self.turned(nodes, self.zero)
        if any(margin):
            self.wrong(where, PADDED, UNPAD)
        return entries

    def layer(self, layer: Layer, margin: Shape) -> tuple[_Piece, Shape]:
        bound = layer.bound
        original = Original(bound.spec.name, bound.values, len(self.zero), self.upsampling, margin)
        row = self.rows[layer.where]
        hint = f"write it by hand: what makes {text(row.takes)} of {text(row.gives)}"
        try:
            made = mirrored(bound, original)
            if made is None:
                self.wrong(layer.where, f"{bound.code} does not say what mirrors it", hint)
                return _Piece(()), self.zero
            codes = [self.code(part, layer.where) for part in made.parts]
        except RuleError as fault:
            self.wrong(layer.where, str(fault), hint)
            return _Piece(()), self.zero
        except ValueError as error:
            self.wrong(layer.where, f"{bound.code} cannot be mirrored: {error}", hint)
            return _Piece(()), self.zero
        after = margin if made.margin is None else made.margin
        if any(margin) and made.margin is None and row.takes[1:] != row.gives[1:]:
            self.wrong(layer.where, PADDED, UNPAD)
        if bound.count > 1 and made.margin is not None and any((*margin, *after)):
            self.wrong(layer.where, f"{bound.code} is repeated, with a padding", "write the layers out")
        return _Piece(tuple(_repeated([code for code in codes if code], bound.count)), made.keeps_order), after

    def code(self, part: Part, where: str) -> str | None:
        """The canonical code of a part; what is wrong with it is a problem of the layer that it stands for.

        Raises:
            ValueError: the layer has no such parameter, or lacks one.
        """
        found = self.registry.find("layer", part.name)
        if not isinstance(found, Registered):
            self.wrong(where, f"is mirrored by {part.name}: {found.what}", found.hint)
            return None
        spec = found.spec
        names = {param.name for param in spec.params}
        unknown = sorted(set(part.values) - names)
        missing = [param.name for param in spec.params if param.required and param.name not in part.values]
        if unknown or missing:
            lacks = f"has no {', '.join(unknown)}" if unknown else f"needs {', '.join(missing)}"
            raise ValueError(f"{part.name}, which would stand for it, {lacks}")
        return canonical(spec, {param.name: part.values.get(param.name, param.default) for param in spec.params})


def _repeated(codes: list[str], count: int) -> list[Any]:
    if count == 1 or not codes:
        return list(codes)
    return [f"{count}*{codes[0]}" if len(codes) == 1 else {"repeat": count, "layers": codes}]


def _written(node: Node) -> Any:
    """A node as it stands in a file, with canonical codes."""
    if isinstance(node, Layer):
        return f"{node.bound.count}*{node.bound.code}" if node.bound.count > 1 else node.bound.code
    body = [_written(each) for each in node.body]
    if isinstance(node, Repeat):
        return {"repeat": node.count, "layers": body}
    shortcut = [_written(each) for each in node.shortcut]
    return {"residual": body, "shortcut": shortcut} if shortcut else {"residual": body}
