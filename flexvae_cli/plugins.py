"""Finds the plugins of the entry-point group `flexvae` and loads them one by one; a broken one costs only itself."""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import sys
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import EntryPoint, entry_points
from types import FunctionType, ModuleType
from typing import Any

import pluggy

from flexvae_cli import hookspecs
from flexvae_cli.api import API_VERSION, LayerSpec, Spec
from flexvae_cli.api.spec import NAME
from flexvae_cli.errors import PluginError, Problem, did_you_mean, nearest
from flexvae_cli.registry import CORE, Registered, Registry

GROUP = "flexvae"


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

    def require_sound(self) -> None:
        """Raise `PluginError` if there is any problem (`--strict-plugins`)."""
        problems = [
            Problem(p, f"plugin {x.name} ({x.distribution} {x.version})") for x in self.found for p in x.problems
        ]
        if problems or self.problems:
            raise PluginError(*self.problems, *problems)

    def origin(self, spec: Spec) -> str:
        """`flexvae-layers-extra 1.0`, the distribution that brings a spec; nothing where none does."""
        bringing = (p for p in self.found if any(spec is one for one in p.specs))
        return next((f"{p.distribution} {p.version}" for p in bringing), "")


@functools.cache
def installed() -> Plugins:
    """The plugins of this environment, loaded at the first call."""
    return load(entry_points(group=GROUP), os.environ)


def load(points: Iterable[EntryPoint], environment: Mapping[str, str]) -> Plugins:
    """Load entry points in a fixed order: the core first, then by distribution and name.

    Args:
        points: the entry points of the group `flexvae`.
        environment: `FLEXVAE_PLUGINS=a,b` loads only those (and the core), `FLEXVAE_NO_PLUGINS=a` leaves those out, and
            `all` leaves out everything but the core. Names are entry-point or distribution names.
    """
    described = [_describe(point) for point in points]
    described.sort(key=lambda pair: (pair[0].distribution != CORE, pair[0].distribution, pair[0].name))
    found = [
        _load(plugin, point) if not plugin.skipped else plugin for plugin, point in _chosen(described, environment)
    ]
    found = _without_clashes(found)
    entries = [Registered(spec, p.distribution, p.version) for p in found for spec in p.specs]
    return Plugins(tuple(found), Registry(entries), tuple(_not_installed([p for p, _ in described], environment)))


def _describe(point: EntryPoint) -> tuple[Plugin, EntryPoint]:
    name, version = (point.dist.name, point.dist.version) if point.dist else (None, None)
    # Leftovers of a broken installation have neither name nor version.
    return Plugin(point.name, name or "unknown", version or "unknown", point.value), point


def _chosen(
    described: list[tuple[Plugin, EntryPoint]], environment: Mapping[str, str]
) -> Iterable[tuple[Plugin, EntryPoint]]:
    only = _names(environment.get("FLEXVAE_PLUGINS"))
    without = _names(environment.get("FLEXVAE_NO_PLUGINS"))
    for plugin, point in described:
        names = {plugin.name, plugin.distribution}
        reason = ""
        if plugin.distribution != CORE and only and not names & only:
            reason = "not named in FLEXVAE_PLUGINS"
        elif plugin.distribution != CORE and ("all" in without or names & without):
            reason = "left out by FLEXVAE_NO_PLUGINS"
        yield replace(plugin, skipped=reason), point


def _not_installed(plugins: list[Plugin], environment: Mapping[str, str]) -> Iterator[Problem]:
    """The names in the environment that choose nothing."""
    known = {name for plugin in plugins for name in (plugin.name, plugin.distribution)}
    for variable, words in (("FLEXVAE_PLUGINS", known), ("FLEXVAE_NO_PLUGINS", known | {"all"})):
        for name in sorted(_names(environment.get(variable)) - words):
            meant = did_you_mean(name, sorted(words))
            yield Problem(f"names '{name}', which is not installed{meant}", variable)


def _names(value: str | None) -> set[str]:
    return {name.strip() for name in (value or "").split(",") if name.strip()}


def _load(plugin: Plugin, point: EntryPoint) -> Plugin:
    """Import and register one plugin and call its hooks; whatever it raises or prints stays with it."""
    start = time.perf_counter()
    problems: list[str] = []
    specs: list[Spec] = []
    hooks: tuple[str, ...] | None = None
    with contextlib.redirect_stdout(sys.stderr):  # a print at import must not spoil --json
        module = _isolated(point.load, problems, "import fails")
        if module is not None and _api_fits(module, problems):
            hooks = _isolated(lambda: _register(module, plugin.name, problems, specs), problems, "cannot be registered")
    seconds = time.perf_counter() - start
    return replace(plugin, hooks=hooks or (), specs=tuple(specs), problems=tuple(problems), seconds=seconds)


def _isolated(call: Any, problems: list[str], what: str) -> Any:
    """The call's result, or None with a line on what it raised and where."""
    try:
        return call()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a plugin may even call sys.exit
        ours = (os.path.dirname(__file__), "<frozen importlib", os.path.dirname(importlib.__file__))  # noqa: PTH120
        frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(ours)]
        at = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
        if isinstance(error, SyntaxError) and error.filename:
            at = f" ({error.filename}:{error.lineno})"
        words = f"{type(error).__name__}: {error}".splitlines()[0].rstrip(": ")
        problems.append(f"{what}: {words}{at}{_mend(error)}")
        return None


def _mend(error: BaseException) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"; pip install what brings '{error.name.partition('.')[0]}', or uninstall the plugin"
    return ""


def _api_fits(module: ModuleType, problems: list[str]) -> bool:
    version = getattr(module, "FLEXVAE_API", None)
    if version == API_VERSION:
        return True
    states = "states no FLEXVAE_API" if version is None else f"is written for FLEXVAE_API {version}"
    problems.append(f"{states}; this FlexVAE has {API_VERSION} (a plugin module states FLEXVAE_API = {API_VERSION})")
    return False


def _register(module: ModuleType, name: str, problems: list[str], specs: list[Spec]) -> tuple[str, ...]:
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(hookspecs)
    functions = [name for name, value in vars(module).items() if isinstance(value, FunctionType)]
    unknown = [hook for hook in functions if hook.startswith("flexvae_") and hook not in hookspecs.KINDS]
    for hook in unknown:
        meant = nearest(hook, hookspecs.KINDS)
        problems.append(f"there is no hook {hook}" + (f"; did you mean {meant[0]}?" if meant else ""))
    try:
        manager.register(module, name)
    except pluggy.PluginValidationError as error:
        detail = str(error).splitlines()[-1].strip()
        problems.append(f"a hook has the wrong signature; hooks take no argument ({detail})")
        return ()
    hooks = []
    for hook, kind in hookspecs.KINDS.items():
        for implementation in getattr(manager.hook, hook).get_hookimpls():
            hooks.append(hook)
            before = len(problems)
            result = _isolated(implementation.function, problems, f"{hook}() fails")
            if len(problems) == before:
                sound = _sound(result, hook, kind, problems)
                specs.extend(sound)
                specs.extend(s.as_bottleneck() for s in sound if isinstance(s, LayerSpec) and s.quantizes)
    if not hooks and not unknown:
        problems.append("implements no hook; decorate one with @hookimpl (from flexvae_cli.api)")
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
        notes = tuple(f"the {s.kind} '{s.name}' belongs to {CORE} and cannot be replaced" for s in taken)
        kept = tuple(s for s in plugin.specs if s not in taken)
        result.append(replace(plugin, specs=kept, problems=plugin.problems + notes) if taken else plugin)
    return result
