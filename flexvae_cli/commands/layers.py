"""`flexvae layers`: every code that is installed, or all about one of them."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from flexvae_cli import ui
from flexvae_cli.commands.options import JsonOption

if TYPE_CHECKING:
    from flexvae_cli.api import Spec
    from flexvae_cli.errors import UsageError
    from flexvae_cli.registry import Registered, Registry

CodeArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="[CODE]", show_default=False, help="An abbreviation such as C2d, or a pattern such as 'VAE*'."
    ),
]


def layers(code: CodeArgument = None, as_json: JsonOption = False) -> None:
    """List all codes, or explain one.

    Codes of layers, bottlenecks, losses, readers and callbacks, of every plugin.
    """
    from flexvae_cli.layers_reference import KINDS, described
    from flexvae_cli.plugins import installed

    registry = installed().registry
    pattern = code is None or any(sign in code for sign in "*?[")
    chosen = {kind: _chosen(registry, kind, code, pattern) for kind in KINDS}
    if code is not None and not any(chosen.values()):
        raise _unknown(registry, code, pattern)
    if as_json:
        ui.json({KINDS[kind].lower(): [described(entry) for entry in found] for kind, found in chosen.items()})
        return
    used = [found for found in chosen.values() if found]
    for index, found in enumerate(used):
        if index:
            ui.data("")
        if pattern:
            _print_list(found)
        else:
            _print_details(found)


def _chosen(registry: Registry, kind: str, code: str | None, pattern: bool) -> list[Registered]:
    from fnmatch import fnmatchcase

    if code is None:
        return registry.all(kind)
    if pattern:
        return [entry for entry in registry.all(kind) if fnmatchcase(entry.spec.name, code)]
    return [entry for entry in registry.all(kind) if entry.spec.name == _name(code)]


def _name(code: str) -> str:
    """The name in a code that may have arguments, as in C2d_3_64_3."""
    return code.partition("_")[0]


def _unknown(registry: Registry, code: str, pattern: bool) -> UsageError:
    from flexvae_cli.errors import Problem, UsageError, did_you_mean

    if pattern:
        return UsageError(f"no code matches '{code}'", hint="see them all with: flexvae layers")
    others = [name for kind in ("bottleneck", "loss", "reader", "callback") for name in registry.names(kind)]
    meant = did_you_mean(_name(code), others)
    unknown = registry.find("layer", _name(code))
    if isinstance(unknown, Problem) and ("did you mean" in unknown.what or not meant):
        return UsageError(unknown)
    return UsageError(f"unknown code '{_name(code)}'{meant}")


def _print_list(entries: list[Registered]) -> None:
    """One kind, a row for each code."""
    from flexvae_cli.layers_reference import dims_of

    columns = (
        ui.Column(entries[0].spec.kind),
        ui.Column("arguments", shrink=True),
        ui.Column("what it is", shrink=True),
        ui.Column("data", optional=2),
        ui.Column("from", optional=1),
    )
    rows = []
    for entry in entries:
        spec = entry.spec
        dims = dims_of(spec)
        rows.append(
            (
                spec.name,
                _arguments(spec),
                spec.summary,
                f"{dims}-D" if dims else "any",
                f"{entry.distribution} {entry.version}",
            )
        )
    ui.table(columns, rows)


def _arguments(spec: Spec) -> str:
    """The arguments that stand by position, and dots for those given by name: `in-channels_[stride=1]_...`."""
    by_position = replace(spec, params=tuple(param for param in spec.params if param.positional)).usage
    written = by_position.split("_")[1:] + ["..."] * any(not param.positional for param in spec.params)
    return "_".join(written)


def _print_details(entries: list[Registered]) -> None:
    """All about one name: usage, meaning, parameters, examples, origin."""
    for index, entry in enumerate(entries):
        if index:
            ui.data("")
        _print_spec(entry)
    if len(entries) > 1:
        ui.warn(f"several plugins bring '{entries[0].spec.name}'; choose one with [plugins] prefer in the config")


def _print_spec(entry: Registered) -> None:
    from flexvae_cli.api.trace import text
    from flexvae_cli.layers_reference import dims_of, reduction_of, shown_default

    spec = entry.spec
    ui.data(f"{spec.name} ({spec.kind}): {spec.summary}")
    if spec.details:
        ui.data(re.sub(r"(?m)^\s+", "", spec.details))
    ui.data(f"\nusage: {spec.usage}")
    if spec.params:
        columns = (
            ui.Column("parameter"),
            ui.Column("wants", wrap=True),
            ui.Column("default"),
            ui.Column("meaning", wrap=True),
        )
        ui.data("")
        ui.table(columns, [(p.option, p.wants, shown_default(p), p.help) for p in spec.params])
    if spec.examples:
        ui.data("")
        for example in spec.examples:
            ui.data(f"{example.code}: {text(example.takes)} -> {text(example.gives)}")
    if spec.kind == "loss":
        ui.data(f"\nreduction: {reduction_of(spec)}")
    dims = f", for {dims_of(spec)}-D data" if dims_of(spec) else ""
    ui.data(f"\nfrom {entry.distribution} {entry.version}{dims}")
