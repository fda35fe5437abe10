"""A structure: a JSON list of codes, repeats and residual entries, read, bound to specs, and expanded.

    ["C2d_3_64_3_1_1", "2*VAERB_64_64",
     {"repeat": 3, "layers": ["C2d_64_64_3_1_1", "SiLU"]},
     {"residual": ["C2d_64_64_1"], "shortcut": ["GN_32_64"]}]

Every problem of a file is reported at once, each with its entry and the characters underlined.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flexvae_cli.codes import MOST_REPEATS, Bound, bind, parse
from flexvae_cli.errors import Problem, UsageError, did_you_mean
from flexvae_cli.jsonfile import JSONError, parse_json, read_text
from flexvae_cli.registry import Registered, Registry
from flexvae_cli.rules import RuleError, rule_of

MOST_LAYERS = 20_000
KEYS = ("layers", "repeat", "residual", "shortcut")


@dataclass(frozen=True, slots=True)
class Layer:
    """An entry that is a code, with its count."""

    bound: Bound
    where: str


@dataclass(frozen=True, slots=True)
class Repeat:
    """`{"repeat": count, "layers": [...]}`."""

    count: int
    body: tuple[Node, ...]
    where: str


@dataclass(frozen=True, slots=True)
class Residual:
    """`{"residual": [...], "shortcut": [...]}`: both paths from one input, added; an empty shortcut is the identity."""

    body: tuple[Node, ...]
    shortcut: tuple[Node, ...]
    where: str


Node = Layer | Repeat | Residual


@dataclass(frozen=True, slots=True)
class Leaf:
    """One layer of the expanded net; `key` is its place in the module's `state_dict`."""

    key: str
    bound: Bound
    where: str


@dataclass(frozen=True, slots=True)
class Sum:
    """A residual entry of the expanded net."""

    key: str
    body: tuple[Item, ...]
    shortcut: tuple[Item, ...]
    where: str


Item = Leaf | Sum


def leaves(items: Iterable[Item]) -> Iterator[Leaf]:
    """The layers of an expanded net, in order; those of a residual entry, then those of its shortcut."""
    for item in items:
        if isinstance(item, Leaf):
            yield item
        else:
            yield from leaves((*item.body, *item.shortcut))


@dataclass(frozen=True)
class Structure:
    """A structure whose codes are all bound to specs.

    Attributes:
        name: what messages call it, such as its file name.
        nodes: the entries as they stand in the file.
        document: the JSON list itself.
        distributions: distribution -> version of every plugin that its codes come from.
    """

    name: str
    nodes: tuple[Node, ...]
    document: list[Any]
    distributions: dict[str, str]

    def expanded(self) -> tuple[Item, ...]:
        """The net, layer by layer, with repeats written out."""
        return tuple(_expand(self.nodes, ""))


def read_structure(path: Path, registry: Registry, name: str = "") -> Structure:
    """Read a structure file (`.json`, or the original project's `.mstruct`: the same JSON).

    Raises:
        UsageError: everything that is wrong with the file.
    """
    name = name or str(path)
    try:
        document = parse_json(read_text(path))
    except JSONError as problem:
        where = f"{name}:{problem.position}" if problem.position else name
        raise UsageError(str(problem), where=where) from None
    return parse_structure(document, registry, name)


def parse_structure(document: Any, registry: Registry, name: str) -> Structure:
    """Check a parsed JSON value and bind its codes.

    Raises:
        UsageError: everything that is wrong with it.
    """
    reader = _Reader(registry)
    if not isinstance(document, list):
        reader.wrong(f"a structure is a JSON list of codes, not {_json_type(document)}", name)
        nodes: tuple[Node, ...] = ()
    else:
        nodes = reader.nodes(document, name)
    if not reader.problems and (count := _size(nodes)) > MOST_LAYERS:
        reader.wrong(f"expands to {count:,} layers; the most is {MOST_LAYERS:,}", name)
    if reader.problems:
        raise UsageError(*reader.problems)
    return Structure(name, nodes, document, dict(sorted(reader.distributions.items())))


class _Reader:
    """Collects problems and the distributions in use while it goes through a document."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.problems: list[Problem] = []
        self.distributions: dict[str, str] = {}

    def wrong(self, what: str, where: str, hint: str = "") -> None:
        self.problems.append(Problem(what, where, hint=hint))

    def nodes(self, entries: Any, where: str) -> tuple[Node, ...]:
        if not isinstance(entries, list):
            self.wrong(f"wants a list of codes, not {_json_type(entries)}", where)
            return ()
        if not entries:
            self.wrong("an empty list: a net has at least one layer", where)
        found = (self.node(entry, f"{where}[{i}]") for i, entry in enumerate(entries))
        return tuple(node for node in found if node is not None)

    def node(self, entry: Any, where: str) -> Node | None:
        if isinstance(entry, str):
            return self.layer(entry, where)
        if isinstance(entry, dict):
            return self.group(entry, where)
        self.wrong(
            f"an entry is a code or an object, not {_json_type(entry)}", where, 'write codes as "C2d_3_64_3_1_1"'
        )
        return None

    def layer(self, text: str, where: str) -> Layer | None:
        bound = bind_code(text, "layer", self.registry, where, self.problems, self.distributions)
        return Layer(bound, where) if bound else None

    def group(self, entry: dict[str, Any], where: str) -> Node | None:
        for key in entry:
            if key not in KEYS:
                self.wrong(f"'{key[:64]}' is no key of an entry{did_you_mean(key, KEYS)}", where)
                return None
        if set(entry) == {"repeat", "layers"}:
            return self.repeat(entry, where)
        if "residual" in entry and set(entry) <= {"residual", "shortcut"}:
            body = self.nodes(entry["residual"], f"{where}.residual")
            written = entry.get("shortcut", [])
            shortcut = self.nodes(written, f"{where}.shortcut") if written != [] else ()
            return Residual(body, shortcut, where)
        forms = '{"repeat": 2, "layers": [...]} or {"residual": [...], "shortcut": [...]}'
        self.wrong(f"an object with {', '.join(sorted(entry)) or 'no key'} is no entry", where, f"write {forms}")
        return None

    def repeat(self, entry: dict[str, Any], where: str) -> Repeat | None:
        count, body = entry["repeat"], self.nodes(entry["layers"], f"{where}.layers")
        if type(count) is not int or not 1 <= count <= MOST_REPEATS:
            shown = count if isinstance(count, (int, float)) and len(str(count)) < 9 else _json_type(count)
            self.wrong(f"repeat wants a whole number from 1 to {MOST_REPEATS}, not {shown}", where)
            return None
        return Repeat(count, body, where)


def bind_code(
    text: str, kind: str, registry: Registry, where: str, problems: list[Problem], distributions: dict[str, str]
) -> Bound | None:
    """Parse one code, look its name up and bind it; problems and the distribution used are added to what is passed.

    Only a layer can be repeated: any other kind with a count is a problem.
    """
    code = parse(text, where, problems)
    if code is None:
        return None
    if kind != "layer" and "*" in text:
        problems.append(Problem(f"there is one {kind}; leave the count out", where, text, (0, text.index("*") + 1)))
        return None
    found = registry.find(kind, code.name)
    if not isinstance(found, Registered):
        problems.append(Problem(found.what, where, text, code.name_span, found.hint))
        return None
    distributions[found.distribution] = found.version
    bound = bind(code, found.spec, where, problems)
    try:
        if bound is not None:
            rule_of(bound)
    except RuleError as fault:
        problems.append(Problem(str(fault), where, text, (0, len(text))))
        return None
    except ValueError as error:  # values that are each fine by themselves, such as groups that do not divide
        problems.append(Problem(f"{code.name}: {error}", where, text, (0, len(text)), usage=found.spec.usage))
        return None
    return bound


def _size(nodes: tuple[Node, ...]) -> int:
    """The number of layers after expansion, without expanding."""
    total = 0
    for node in nodes:
        if isinstance(node, Layer):
            total += node.bound.count
        elif isinstance(node, Repeat):
            total += node.count * _size(node.body)
        else:
            total += _size(node.body) + _size(node.shortcut)
    return total


def _expand(nodes: tuple[Node, ...], prefix: str) -> Iterator[Item]:
    for index, node in enumerate(_repeated(nodes)):
        key = f"{prefix}{index}"
        if isinstance(node, Layer):
            yield Leaf(key, node.bound, node.where)
        else:
            body = tuple(_expand(node.body, f"{key}.body."))
            yield Sum(key, body, tuple(_expand(node.shortcut, f"{key}.shortcut.")), node.where)


def _repeated(nodes: tuple[Node, ...]) -> Iterator[Layer | Residual]:
    """The nodes with every repeat and count written out."""
    for node in nodes:
        if isinstance(node, Repeat):
            for _ in range(node.count):
                yield from _repeated(node.body)
        elif isinstance(node, Layer):
            for _ in range(node.bound.count):
                yield node
        else:
            yield node


def _json_type(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
