"""Finds the plugins of the entry-point group `flexvae` and loads them one by one; a broken one costs only itself."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import EntryPoint, entry_points
from types import FunctionType, ModuleType
from typing import Any

import pluggy

from flexvae_cli import hookspecs
from flexvae_cli.api import API_VERSION, LayerSpec, Spec
from flexvae_cli.api.spec import NAME
from flexvae_cli.entry_points import CORE, PLUGINS, Claim, claims, installed_commands, named_in_vain
from flexvae_cli.errors import PluginError, Problem, nearest
from flexvae_cli.faults import at, isolated
from flexvae_cli.registry import Registered, Registry

SLOW = 1.0  # seconds that a plugin may take to load before it is told


@dataclass(frozen=True, slots=True)
class Plugin:
    """One entry point: what it is, what it brings, and what went wrong with it."""

    name: str
    distribution: str
    version: str
    module: str
    hooks: tuple[str, ...] = ()
    specs: tuple[Spec, ...] = ()
    problems: tuple[str, ...] = ()
    skipped: str = ""
    seconds: float = 0.0

    @property
    def state(self) -> str:
        """`ok`, `skipped`, `failed` (brings nothing) or `partly` (something of it works)."""
        if self.skipped:
            return "skipped"
        if not self.problems:
            return "ok"
        return "partly" if self.specs else "failed"


@dataclass(frozen=True)
class Plugins:
    """Everything that was found, the registry made of what works, and what is wrong with how plugins were chosen."""

    found: tuple[Plugin, ...]
    registry: Registry = field(repr=False)
    problems: tuple[Problem, ...] = ()

    def require_sound(self, more: Iterable[Problem] = ()) -> None:
        """Raise `PluginError` if there is any problem, or `more` of them (`--strict-plugins`)."""
        problems = [
            Problem(p, f"plugin {x.name} ({x.distribution} {x.version})") for x in self.found for p in x.problems
        ]
        problems = [*self.problems, *problems, *more]
        if problems:
            raise PluginError(*problems)

    def origin(self, spec: Spec) -> str:
        """`flexvae-layers-extra 1.0`, the distribution that brings a spec; nothing where none does."""
        bringing = (p for p in self.found if any(spec is one for one in p.specs))
        return next((f"{p.distribution} {p.version}" for p in bringing), "")


@functools.cache
def installed() -> Plugins:
    """The plugins of this environment, loaded at the first call."""
    return load(entry_points(group=PLUGINS), os.environ, installed_commands())


def load(points: Iterable[EntryPoint], environment: Mapping[str, str], commands: Iterable[Claim] = ()) -> Plugins:
    """Load entry points one by one.

    Args:
        points: the entry points of the group `flexvae`.
        environment: which of them to load; see `entry_points.claims`.
        commands: the subcommands that are installed, whose names the environment may have too.
    """
    claimed = claims(points, environment)
    found = [_load(claim) for claim in claimed]
    found = _without_clashes(found)
    entries = [Registered(spec, p.distribution, p.version) for p in found for spec in p.specs]
    return Plugins(tuple(found), Registry(entries), tuple(named_in_vain([*claimed, *commands], environment)))


def _load(claim: Claim) -> Plugin:
    """Import and register one plugin and call its hooks; whatever it raises or prints stays with it."""
    point = claim.point
    plugin = Plugin(point.name, claim.distribution, claim.version, point.value, skipped=claim.skipped)
    if plugin.skipped:
        return plugin
    start = time.perf_counter()
    problems: list[str] = []
    specs: list[Spec] = []
    hooks: tuple[str, ...] | None = None
    module = isolated(point.load, problems, "import fails", claim.package)
    if module is not None and _api_fits(module, problems):
        hooks = isolated(lambda: _register(module, plugin.name, problems, specs), problems, "cannot be registered")
    seconds = time.perf_counter() - start
    return replace(plugin, hooks=hooks or (), specs=tuple(specs), problems=tuple(problems), seconds=seconds)


def _api_fits(module: ModuleType, problems: list[str]) -> bool:
    version = getattr(module, "FLEXVAE_API", None)
    if version == API_VERSION:
        return True
    states = "states no FLEXVAE_API" if version is None else f"is written for FLEXVAE_API {version}"
    has = f"this FlexVAE has {API_VERSION}: a plugin module states FLEXVAE_API = {API_VERSION}"
    problems.append(f"{states}; {has}{at(module, 'FLEXVAE_API')}")
    return False


def _register(module: ModuleType, name: str, problems: list[str], specs: list[Spec]) -> tuple[str, ...]:
    manager = pluggy.PluginManager(PLUGINS)
    manager.add_hookspecs(hookspecs)
    functions = {name: f for name, f in vars(module).items() if isinstance(f, FunctionType)}
    functions = {name: function for name, function in functions.items() if name.startswith("flexvae_")}
    unknown = [hook for hook in functions if hook not in hookspecs.KINDS]
    for hook in unknown:
        meant = nearest(hook, hookspecs.KINDS)
        ends = f"; did you mean {meant[0]}?" if meant else ""
        problems.append(f"there is no hook {hook}{ends}{at(functions[hook])}")
    try:
        manager.register(module, name)
    except pluggy.PluginValidationError as error:
        detail = str(error).splitlines()[-1].strip()
        wrong = next((f for f in functions.values() if f.__code__.co_argcount), module)
        problems.append(f"a hook has the wrong signature; hooks take no argument: {detail}{at(wrong)}")
        return ()
    hooks = []
    for hook, kind in hookspecs.KINDS.items():
        for implementation in getattr(manager.hook, hook).get_hookimpls():
            hooks.append(hook)
            before = len(problems)
            result = isolated(implementation.function, problems, f"{hook}() fails", module.__name__)
            if len(problems) == before:
                sound = _sound(result, hook, kind, problems)
                problems[before:] = [problem + at(implementation.function) for problem in problems[before:]]
                specs.extend(sound)
                specs.extend(s.as_bottleneck() for s in sound if isinstance(s, LayerSpec) and s.quantizes)
    if not hooks and not unknown:
        problems.append("implements no hook; decorate one with @hookimpl of flexvae_cli.api" + at(module))
    return tuple(hooks)


def _sound(result: Any, hook: str, kind: str, problems: list[str]) -> list[Spec]:
    """The specs of the right kind in what a hook returned."""
    if not isinstance(result, (list, tuple)):
        problems.append(f"{hook}() returns {type(result).__name__}; it wants a list of specs")
        return []
    good: list[Spec] = []
    for item in result:
        if not isinstance(item, Spec) or item.kind != kind:
            made = item.kind + " " + item.name if isinstance(item, Spec) else type(item).__name__
            problems.append(f"{hook}() returns a {made}; it wants what @{kind} declares")
        elif not NAME.fullmatch(item.name):
            problems.append(f"{hook}() returns {item.name!r}; a name is 1 to 32 letters and digits, a letter first")
        elif any(item.name == other.name for other in good):
            problems.append(f"{hook}() returns '{item.name}' twice")
        else:
            good.append(item)
    return good


def _without_clashes(found: list[Plugin]) -> list[Plugin]:
    """Core codes cannot be replaced: a third party's claim on one is dropped, and both are named."""
    core = {(s.kind, s.name) for p in found if p.distribution == CORE for s in p.specs}
    result = []
    for plugin in found:
        taken = [s for s in plugin.specs if (s.kind, s.name) in core and plugin.distribution != CORE]
        words = f"belongs to {CORE} and cannot be replaced"
        notes = tuple(f"the {s.kind} '{s.name}' {words}{at(s.factory)}" for s in taken)
        kept = tuple(s for s in plugin.specs if s not in taken)
        result.append(replace(plugin, specs=kept, problems=plugin.problems + notes) if taken else plugin)
    return result
