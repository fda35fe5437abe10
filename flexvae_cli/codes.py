"""The grammar of one code: `[COUNT "*"] NAME ("_" argument)*`, an argument being a value or `option=value`.

`parse` reads the text into a `Code` that knows where each part stands, `bind` gives the parts to a spec, and
`canonical` writes the one form that a meaning has. Nothing unknown is dropped, renamed or guessed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from flexvae_cli.api.spec import NAME, Param, Spec
from flexvae_cli.errors import Problem, did_you_mean

MOST_CHARACTERS = 512
MOST_ARGUMENTS = 16
MOST_REPEATS = 4096
VALUE = re.compile(r"[A-Za-z0-9.+-]+", re.ASCII)
OPTION = re.compile(r"[a-z][a-z0-9-]*", re.ASCII)
Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument of a code: `text` is the value, `option` its name where it was given by name."""

    text: str
    span: Span
    option: str | None = None
    option_span: Span = (0, 0)


@dataclass(frozen=True, slots=True)
class Code:
    """The parts of a code as they were written."""

    text: str
    name: str
    name_span: Span
    count: int = 1
    arguments: tuple[Argument, ...] = ()


@dataclass(frozen=True, slots=True)
class Bound:
    """A code whose arguments fit a spec: `values` holds every parameter, defaults included."""

    spec: Spec
    values: Mapping[str, Any]
    count: int = 1

    @property
    def code(self) -> str:
        """The canonical form of one of the repeated layers."""
        return canonical(self.spec, self.values)

    def build(self) -> Any:
        """Call the factory."""
        return self.spec.factory(**self.values)


def parse(text: str, where: str, problems: list[Problem]) -> Code | None:
    """Read one code; what is wrong is added to `problems`, and None comes back."""
    before = len(problems)

    def wrong(what: str, span: Span, hint: str = "") -> None:
        problems.append(Problem(what, where, text, span, hint))

    if len(text) > MOST_CHARACTERS:
        wrong(f"a code of {len(text):,} characters; the most is {MOST_CHARACTERS}", (0, 8))
        return None
    star = text.find("*")
    count = _count(text, star, wrong)
    pieces = _pieces(text, star + 1)
    name, name_span = pieces[0]
    if not NAME.fullmatch(name):
        wrong(_bad_name(text, name, star), (name_span[0], max(name_span[1], name_span[0] + 1)))
    arguments = [_argument(piece, span, wrong) for piece, span in pieces[1:]]
    if len(arguments) > MOST_ARGUMENTS:
        wrong(f"{len(arguments)} arguments; the most is {MOST_ARGUMENTS}", (pieces[1][1][0], len(text)))
    named = False
    for argument in arguments:
        if argument.option is None and named:
            wrong(f"the value '{argument.text}' stands behind an option; values come first", argument.span)
        named = named or argument.option is not None
    return None if len(problems) > before else Code(text, name, name_span, count, tuple(arguments))


def _count(text: str, star: int, wrong: Any) -> int:
    digits = text[: max(star, 0)]
    if star < 0:
        return 1
    if not re.fullmatch(r"[0-9]+", digits, re.ASCII):
        wrong(f"'{digits}' in front of '*' is not a count", (0, star + 1), "write a repeat as 2*CODE")
    elif len(digits) > 6 or not 1 <= int(digits) <= MOST_REPEATS:
        wrong(
            f"a layer cannot be repeated {digits if len(digits) < 9 else 'so many'} times",
            (0, star),
            f"write a count from 1 to {MOST_REPEATS}, or leave the entry out",
        )
    else:
        return int(digits)
    return 1


def _pieces(text: str, start: int) -> list[tuple[str, Span]]:
    pieces = []
    for piece in text[start:].split("_"):
        pieces.append((piece, (start, start + len(piece))))
        start += len(piece) + 1
    return pieces


def _bad_name(text: str, name: str, star: int) -> str:
    if not text:
        return "an empty code"
    if not name:
        return (
            "a count without a layer behind it" if star >= 0 and star == len(text) - 1 else "a code begins with a name"
        )
    if text != text.strip():
        return "a code has no spaces around it"
    return "a name is made of letters and digits, at most 32, and begins with a letter"


def _argument(piece: str, span: Span, wrong: Any) -> Argument:
    option, equals, value = piece.rpartition("=")
    start = span[0] + len(option) + len(equals)
    argument = Argument(value, (start, span[1]), option if equals else None, (span[0], span[0] + len(option)))
    if equals and not OPTION.fullmatch(option):
        wrong(
            f"'{option}' is no option name" if option else "an option without a name",
            (span[0], max(start, span[0] + 1)),
        )
    if not value:
        wrong(
            "an empty argument", (max(span[0] - 1, 0), max(span[1], span[0])), "leave out the '_' that nothing follows"
        )
    elif not VALUE.fullmatch(value):
        bad = next(i for i, c in enumerate(value) if not VALUE.fullmatch(c))
        wrong(f"the character {value[bad]!r} cannot stand in a value", (start + bad, start + bad + 1))
    return argument


def bind(code: Code, spec: Spec, where: str, problems: list[Problem]) -> Bound | None:
    """Give a code's arguments to a spec's parameters; what does not fit is added to `problems`."""
    before = len(problems)
    values: dict[str, Any] = {}

    def wrong(what: str, span: Span) -> None:
        problems.append(Problem(f"{spec.name} {what}", where, code.text, span, usage=spec.usage))

    positionals = [p for p in spec.params if p.positional]
    for number, argument in enumerate(code.arguments):
        param = _param(spec, positionals, number, argument, wrong)
        if param is None:
            continue
        if param.name in values:
            wrong(f"is given '{param.option}' twice", argument.option_span)
            continue
        try:
            values[param.name] = param.parse(argument.text)
        except ValueError as error:
            values[param.name] = None
            wrong(f"{param.option} {error}", argument.span)
    missing = [p.option for p in spec.params if p.required and p.name not in values]
    if missing:
        end = len(code.text)
        wrong(f"needs {', '.join(missing)}", (end, end + 1))
    if len(problems) > before:
        return None
    complete = {p.name: values.get(p.name, p.default) for p in spec.params}
    return Bound(spec, MappingProxyType(complete), code.count)


def _param(spec: Spec, positionals: list[Param], number: int, argument: Argument, wrong: Any) -> Param | None:
    if argument.option is None:
        if number < len(positionals):
            return positionals[number]
        most = len(positionals)
        wrong(f"takes {most or 'no'} value{'' if most == 1 else 's'}; '{argument.text}' is one too many", argument.span)
        return None
    param = spec.param(argument.option)
    if param is None or param.option != argument.option:
        options = [p.option for p in spec.params]
        wrong(f"has no option '{argument.option}'{did_you_mean(argument.option, options)}", argument.option_span)
        return None
    return param


def canonical(spec: Spec, values: Mapping[str, Any]) -> str:
    """The one text of a meaning: values as far as the last that differs from its default, then options in order.

    The path of a file of weights is left out: no code can hold it.
    """
    parts = [spec.name]
    positionals = [p for p in spec.params if p.positional and p.kind != "file"]
    given = [i for i, p in enumerate(positionals) if p.required or values[p.name] != p.default]
    last = given[-1] + 1 if given else 0
    # A default of None has no text: what stands behind it is written by name.
    last = next((i for i, p in enumerate(positionals[:last]) if values[p.name] is None), last)
    parts += [p.format(values[p.name]) for p in positionals[:last]]
    rest = positionals[last:] + [p for p in spec.params if not p.positional and p.kind != "file"]
    parts += [f"{p.option}={p.format(values[p.name])}" for p in rest if p.required or values[p.name] != p.default]
    return "_".join(parts)
