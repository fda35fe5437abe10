"""What installed packages say in their metadata that they bring, read without importing any of it."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points

from flexvae_cli.errors import Problem, did_you_mean, listed

CORE = "flexvae"
"""The distribution whose codes and commands no other can replace."""
PLUGINS = "flexvae"
COMMANDS = "flexvae.commands"
COMMAND = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Claim:
    """One entry point, and why it is left out, where it is."""

    point: EntryPoint
    distribution: str
    version: str
    skipped: str = ""

    @property
    def name(self) -> str:
        return self.point.name

    @property
    def package(self) -> str:
        """The top of the module that it names: `zoo` of `zoo.commands:count`."""
        return self.point.value.partition(":")[0].partition(".")[0]

    def __str__(self) -> str:
        return f"{self.name} ({self.distribution} {self.version})"


def claims(points: Iterable[EntryPoint], environment: Mapping[str, str]) -> list[Claim]:
    """The entry points in a fixed order: the core first, then by distribution and name.

    Args:
        points: those of one group.
        environment: `FLEXVAE_PLUGINS=a,b` takes only those (and the core), `FLEXVAE_NO_PLUGINS=a` leaves those out, and
            `all` leaves out everything but the core. Names are entry-point or distribution names.
    """
    only, without = _names(environment.get("FLEXVAE_PLUGINS")), _names(environment.get("FLEXVAE_NO_PLUGINS"))
    found = [_claim(point, only, without) for point in points]
    return sorted(found, key=lambda claim: (claim.distribution != CORE, claim.distribution, claim.name))


def _claim(point: EntryPoint, only: set[str], without: set[str]) -> Claim:
    name, version = (point.dist.name, point.dist.version) if point.dist else (None, None)
    name, version = name or "unknown", version or "unknown"  # leftovers of a broken installation have neither
    names, skipped = {point.name, name}, ""
    if name != CORE and only and not names & only:
        skipped = "not named in FLEXVAE_PLUGINS"
    elif name != CORE and ("all" in without or names & without):
        skipped = "left out by FLEXVAE_NO_PLUGINS"
    return Claim(point, name, version, skipped)


def named_in_vain(found: Iterable[Claim], environment: Mapping[str, str]) -> Iterator[Problem]:
    """The names in the environment that choose nothing."""
    known = {name for claim in found for name in (claim.name, claim.distribution)}
    for variable, words in (("FLEXVAE_PLUGINS", known), ("FLEXVAE_NO_PLUGINS", known | {"all"})):
        for name in sorted(_names(environment.get(variable)) - words):
            yield Problem(f"names '{name}', which is not installed{did_you_mean(name, sorted(words))}", variable)


def _names(value: str | None) -> set[str]:
    return {name.strip() for name in (value or "").split(",") if name.strip()}


def installed_commands() -> list[Claim]:
    """The subcommands that the plugins of this environment bring."""
    return claims(entry_points(group=COMMANDS), os.environ)


def offered(found: Iterable[Claim], core: Collection[str]) -> dict[str, list[Claim]]:
    """Subcommand -> who brings it; those that are left out, have no fitting name or a core one's are not offered."""
    names: dict[str, list[Claim]] = {}
    for claim in found:
        if not claim.skipped and COMMAND.fullmatch(claim.name) and claim.name not in core:
            names.setdefault(claim.name, []).append(claim)
    return names


def command_problems(found: Iterable[Claim], core: Collection[str]) -> Iterator[Problem]:
    """What the metadata alone tells is wrong with the subcommands of plugins."""
    found = [claim for claim in found if not claim.skipped]
    for claim in found:
        if claim.name in core:
            yield Problem(f"the command '{claim.name}' belongs to {CORE} and cannot be replaced", f"command {claim}")
        elif not COMMAND.fullmatch(claim.name):
            what = "is no name of a command: small letters and digits, a letter first, words joined by '-'"
            yield Problem(f"'{claim.name}' {what}", f"command {claim}")
    for name, claimants in offered(found, core).items():
        if len(claimants) > 1:
            yield claimed_by_several(name, claimants)


def claimed_by_several(name: str, claimants: Collection[Claim]) -> Problem:
    """The same name from two plugins: neither is taken."""
    owners = [claim.distribution for claim in claimants]
    hint = f"leave one out: FLEXVAE_NO_PLUGINS={owners[-1]}"
    return Problem(f"the command '{name}' is claimed by {listed(owners, last='and')}", hint=hint)
