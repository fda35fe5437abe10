"""A new plugin: names that go together, and the files of the template `assets/plugin` filled in with them."""

from __future__ import annotations

import keyword
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import resources
from importlib.resources.abc import Traversable
from importlib.util import find_spec
from string import Template

from flexvae_cli.api import API_VERSION
from flexvae_cli.api.spec import NAME
from flexvae_cli.errors import Problem, UsageError
from flexvae_cli.registry import Registry, known_elsewhere

DISTRIBUTION = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", re.ASCII)
LONGEST = 64  # letters of a distribution's name
COMMON = {"flexvae", "layers", "layer", "plugin"}  # words of a name that say nothing of what is in it
SUFFIX = ".template"


@dataclass(frozen=True, slots=True)
class Names:
    """What a new plugin and its parts are called.

    Attributes:
        name: the distribution, as in `flexvae-layers-sine`.
        code: its first layer, as in `Sine`.
    """

    name: str
    code: str

    @property
    def package(self) -> str:
        """What Python imports: `flexvae_layers_sine`."""
        return self.name.replace("-", "_")

    def fields(self) -> dict[str, str]:
        """What the template's fields stand for."""
        words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", self.code)
        return {
            "name": self.name,
            "package": self.package,
            "entry": "-".join(_own_words(self.name)) or self.name,
            "code": self.code,
            "function": words.lower(),
            "api": str(API_VERSION),
            "year": str(datetime.now(UTC).year),
        }


def names_of(name: str, code: str, registry: Registry) -> Names:
    """The names of a new plugin.

    Args:
        name: the distribution, in lower case, words joined by `-`.
        code: the abbreviation of its layer; where it is empty, it is made of the name.
        registry: the codes that are taken.

    Raises:
        UsageError: everything that is wrong with the two.
    """
    names = Names(name, code or "".join(word.title() for word in _own_words(name)))
    problems = [*_name_problems(names), *_code_problems(names, registry, given=bool(code))]
    if problems:
        raise UsageError(*problems)
    return names


def _own_words(name: str) -> list[str]:
    words = re.split(r"[^a-zA-Z0-9]+", name)
    return [word for word in words if word and word.lower() not in COMMON]


def _name_problems(names: Names) -> Iterator[Problem]:
    if not DISTRIBUTION.fullmatch(names.name) or len(names.name) > LONGEST:
        better = re.sub(r"[^a-z0-9]+", "-", names.name.lower()).strip("-")[:LONGEST].strip("-")
        hint = f"as in {better}" if DISTRIBUTION.fullmatch(better) else "as in flexvae-layers-sine"
        wants = f"1 to {LONGEST} small letters and digits, a letter first, words joined by '-'"
        yield Problem(f"the name {names.name[: 2 * LONGEST]!r} is none: it wants {wants}", hint=hint)
    elif keyword.iskeyword(names.package) or names.package in sys.stdlib_module_names:
        yield Problem(f"the name '{names.name}' is one of Python's own", hint=f"as in flexvae-{names.name}")
    elif find_spec(names.package) is not None:
        yield Problem(f"a package '{names.package}' is installed already, or stands here", hint="take another name")


def _code_problems(names: Names, registry: Registry, *, given: bool) -> Iterator[Problem]:
    code, hint = names.code, "give another one: --code Sine"
    if not NAME.fullmatch(code):
        if given or DISTRIBUTION.fullmatch(names.name):  # else the name is what is wrong
            yield Problem(f"the code {code[:64]!r} wants to be 1 to 32 letters and digits, a letter first", hint=hint)
        return
    owners = [entry.distribution for entry in registry.all("layer") if entry.spec.name == code]
    owners += [known_elsewhere()[code]] if code in known_elsewhere() and not owners else []
    if owners:
        yield Problem(f"the code '{code}' is taken by {owners[0]}", hint=hint)


def files_of(names: Names) -> dict[str, bytes]:
    """The files of the new plugin: path below its folder -> content."""
    fields = names.fields()
    found = {}
    for path, text in _templates(resources.files("flexvae_cli").joinpath("assets/plugin"), ""):
        name = path.removesuffix(SUFFIX).replace("package/", f"{names.package}/")
        found[name] = Template(text).substitute(fields).encode()
    return found


def _templates(folder: Traversable, above: str) -> Iterator[tuple[str, str]]:
    for entry in sorted(folder.iterdir(), key=lambda e: e.name):
        if entry.is_dir():
            yield from _templates(entry, f"{above}{entry.name}/")
        elif entry.name.endswith(SUFFIX):
            yield above + entry.name, entry.read_text("utf-8")
