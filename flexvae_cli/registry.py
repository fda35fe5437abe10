"""Which specs there are: kind and name -> the spec and the distribution that brings it."""

from __future__ import annotations

import functools
import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources

from flexvae_cli.api.spec import Spec
from flexvae_cli.entry_points import CORE as CORE
from flexvae_cli.errors import Problem, UsageError, listed, nearest


@dataclass(frozen=True, slots=True)
class Registered:
    """A spec and where it comes from."""

    spec: Spec
    distribution: str
    version: str


class Registry:
    """All specs of the loaded plugins. Several distributions may claim a name; using such a name is then an error."""

    def __init__(
        self,
        entries: list[Registered],
        prefer: Mapping[str, str] | None = None,
        only: Mapping[str, str] | None = None,
    ) -> None:
        self._entries: dict[tuple[str, str], list[Registered]] = defaultdict(list)
        self.prefer = dict(prefer or {})
        self._only = dict(only or {})
        for entry in entries:
            self._entries[entry.spec.kind, entry.spec.name].append(entry)

    def preferring(self, prefer: Mapping[str, str]) -> Registry:
        """The same specs, with clashes settled by `prefer`: name -> distribution.

        Raises:
            UsageError: a preferred distribution does not bring that name.
        """
        problems = []
        for name, distribution in prefer.items():
            brings = {e.distribution for (_, n), found in self._entries.items() if n == name for e in found}
            if distribution not in brings:
                who = f"{listed(sorted(brings))} does" if brings else "no plugin does"
                problems.append(Problem(f"plugins.prefer: '{distribution}' does not bring the code '{name}'; {who}"))
        if problems:
            raise UsageError(*problems)
        return Registry(self._every(), {**self.prefer, **prefer}, self._only)

    def only(self, distributions: Mapping[str, str], prefer: Mapping[str, str]) -> Registry:
        """The specs that a model may be made of: those of the core and of the distributions that it records.

        Args:
            distributions: distribution -> version, as recorded.
            prefer: name -> distribution, the preferences that settled clashes when the model was made.
        """
        kept = [entry for entry in self._every() if entry.distribution in {CORE, *distributions}]
        return Registry(kept, prefer, distributions)

    @property
    def distributions(self) -> set[str]:
        """Every distribution that brings something."""
        return {entry.distribution for entry in self._every()}

    def _every(self) -> list[Registered]:
        return [entry for found in self._entries.values() for entry in found]

    def names(self, kind: str) -> list[str]:
        """The names of a kind, sorted without regard to case."""
        return sorted({name for k, name in self._entries if k == kind}, key=lambda n: (n.casefold(), n))

    def all(self, kind: str) -> list[Registered]:
        """Every entry of a kind by name; a clashing name has several."""
        return [entry for name in self.names(kind) for entry in self._entries[kind, name]]

    def find(self, kind: str, name: str) -> Registered | Problem:
        """The entry of that name, or what is wrong: unknown with the nearest names, or claimed by several."""
        found = self._entries.get((kind, name), [])
        core = [e for e in found if e.distribution == CORE]
        if core or len(found) == 1:
            return core[0] if core else found[0]
        if found:
            return self._choose(kind, name, found)
        return self._unknown(kind, name)

    def _choose(self, kind: str, name: str, found: list[Registered]) -> Registered | Problem:
        for entry in found:
            if entry.distribution == self.prefer.get(name):
                return entry
        owners = sorted(e.distribution for e in found)
        hint = f'choose one in the config: [plugins] prefer = {{ {name} = "{owners[0]}" }}'
        if self._only:  # a model was sound when it was made, so a plugin has gained the name since
            pinned = " ".join(f"{owner}=={self._only[owner]}" for owner in owners)
            hint = f"go back to the versions that the model was made with: pip install {pinned}"
        return Problem(f"the {kind} '{name}' is claimed by {listed(owners, last='and')}", hint=hint)

    def _unknown(self, kind: str, name: str) -> Problem:
        if self._only:
            made_with = ", ".join(f"{distribution} {version}" for distribution, version in self._only.items())
            return Problem(
                f"the {kind} '{name}' comes with none of the plugins that the model was made with ({made_with})"
            )
        known = known_elsewhere()
        close = nearest(name, [*self.names(kind), *(known if kind == "layer" else ())])
        meant = f"; did you mean {listed(close)}?" if close else ""
        wanted = name if name in known else next(iter(close), name)
        if kind == "layer" and wanted in known and not self._entries.get((kind, wanted)):
            hint = f"'{wanted}' comes with a plugin: pip install {known[wanted]}"
            return Problem(f"unknown {kind} '{name}'{'' if wanted == name else meant}", hint=hint)
        if kind == "bottleneck" and name in known and not self._entries.get(("layer", name)):
            return Problem(f"unknown {kind} '{name}'", hint=f"'{name}' comes with a plugin: pip install {known[name]}")
        if kind == "layer":
            hint = "" if close else "see them all with: flexvae layers"
        else:
            hint = f"there are {listed(names, last='and')}" if (names := self.names(kind)) else ""
        return Problem(f"unknown {kind} '{name}'{meant}", hint=hint)


@functools.cache
def known_elsewhere() -> dict[str, str]:
    """Layer codes that published plugins bring: code -> distribution, for the hint when one is not installed."""
    text = resources.files("flexvae_cli").joinpath("assets/known_plugins.json").read_text("utf-8")
    return {code: name for name, codes in json.loads(text).items() for code in codes}
