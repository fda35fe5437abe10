"""What every code means, from its spec: plain values for `flexvae layers`, and `docs/layers.md`.

`python -m flexvae_cli.layers_reference > docs/layers.md` writes the page anew.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from flexvae_cli.api import REDUCTIONS, LayerSpec, LossSpec, Param, ReaderSpec, Spec
from flexvae_cli.api.trace import text
from flexvae_cli.registry import CORE, Registered

KINDS = {
    "layer": "Layers",
    "bottleneck": "Bottlenecks",
    "loss": "Losses",
    "reader": "Readers",
    "callback": "Callbacks",
}

HEAD = """# Layers, bottlenecks, losses, readers and callbacks

A code is a name with its arguments, joined by `_`: `C2d_3_128_3_1_1` is `C2d` with `in-channels` 3, `out-channels` 128,
`kernel-size` 3, `stride` 1 and `padding` 1. Values come in the order of the tables below; a parameter can also be given
by name behind them, as in `C2d_3_128_3_padding=1`, and those marked *by name* only so. What has a default can be left
out. `2*C2d_64_64_3_1_1` is the layer twice. Capital letters count. Everything unknown is an error.

A structure file is a JSON list of codes of layers; it may also hold `{"repeat": 3, "layers": [...]}`, and
`{"residual": [...], "shortcut": [...]}`, whose two paths are added (without `shortcut` the input itself is).

Shapes are channels × size, as in `3x256x256`. `flexvae layers` lists what is installed, plugins included;
`flexvae layers C2d` explains one code; `flexvae inspect FILE` shows what codes do to shapes. This page is generated
from the declarations of the codes that come with FlexVAE.
"""


def reference() -> str:
    """The page on the codes that come with FlexVAE, as Markdown."""
    from flexvae_cli.plugins import installed

    registry = installed().registry
    sections = [HEAD]
    for kind, title in KINDS.items():
        specs = [entry.spec for entry in registry.all(kind) if entry.distribution == CORE]
        rows = "\n".join(f"| [`{s.name}`](#{s.name.lower()}) | {s.summary} |" for s in specs)
        sections += [f"## {title}\n\n| code | what it is |\n| --- | --- |\n{rows}\n", *map(_section, specs)]
    return "\n".join(sections)


def _section(spec: Spec) -> str:
    parts = [f"### {spec.name}", f"`{spec.usage}`", spec.summary, spec.details, *_facts(spec)]
    if spec.params:
        rows = "\n".join(f"| {' | '.join(_markdown_cells(param))} |" for param in spec.params)
        parts.append(f"| parameter | wants | default | meaning |\n| --- | --- | --- | --- |\n{rows}")
    parts += ["\n".join(f"- `{e.code}`: {text(e.takes)} -> {text(e.gives)}" for e in spec.examples)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _facts(spec: Spec) -> Iterator[str]:
    """What is known of a loss beside its parameters."""
    if spec.kind == "loss":
        dims = dims_of(spec)
        yield f"Reduction: {reduction_of(spec)}." + (f" For {dims}-D data." if dims else "")


def dims_of(spec: Spec) -> int | None:
    """The number of spatial axes that a layer, loss or reader takes; None where it takes several."""
    if isinstance(spec, ReaderSpec):
        return spec.axes[0] if len(spec.axes) == 1 else None
    return spec.dims if isinstance(spec, LayerSpec | LossSpec) else None


def reduction_of(spec: Spec) -> str:
    """The reduction of a loss in words, behind its name: `element (mean over all elements of all samples)`."""
    reduction = spec.reduction if isinstance(spec, LossSpec) else None
    return f"{reduction} ({REDUCTIONS[reduction]})" if reduction else REDUCTIONS[None]


def _markdown_cells(param: Param) -> Iterator[str]:
    yield f"`{param.option}`" if param.positional else f"`{param.option}` *by name*"
    yield param.wants
    yield "" if param.required else f"`{shown_default(param)}`" if param.default is not None else "none"
    yield param.help


def shown_default(param: Param) -> str:
    """The default as it is written in a code; nothing where the parameter must be given or its default is None."""
    return "" if param.default is None else param.format(param.default)


def described(entry: Registered) -> dict[str, Any]:
    """A spec as plain values, for `--json`."""
    spec = entry.spec
    return {
        "kind": spec.kind,
        "name": spec.name,
        "usage": spec.usage,
        "summary": spec.summary,
        "details": spec.details,
        "dims": dims_of(spec),
        **({"reduction": spec.reduction if isinstance(spec, LossSpec) else None} if spec.kind == "loss" else {}),
        "static_rule": isinstance(spec, LayerSpec) and spec.trace is not None,
        "distribution": entry.distribution,
        "version": entry.version,
        "parameters": [_described_param(param) for param in spec.params],
        "examples": [{"code": e.code, "input": list(e.takes), "output": list(e.gives)} for e in spec.examples],
    }


def _described_param(param: Param) -> dict[str, Any]:
    return {
        "name": param.option,
        "wants": param.wants,
        "required": param.required,
        "by_name_only": not param.positional,
        "default": shown_default(param) or None,
        "help": param.help,
    }


if __name__ == "__main__":
    sys.stdout.write(reference())
