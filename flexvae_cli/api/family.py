"""One definition of a layer for data of one, two and three axes: a spec for each, whose names differ."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from flexvae_cli.api.mirror import MirrorRule
from flexvae_cli.api.spec import LayerSpec, described
from flexvae_cli.api.trace import Rule


def layer_family(
    names: Mapping[int, str],
    *,
    trace: Callable[..., Rule] | None = None,
    meta: bool = True,
    mirror: MirrorRule | None = None,
) -> Callable[[Callable[..., Any]], tuple[LayerSpec, ...]]:
    """Declare the counterparts of a layer at once: what differs between them is their number of axes alone.

    The factory's first parameter is that number; codes do not know it, since a name stands for it. In its docstring
    `N-D` becomes `1-D`, `2-D` or `3-D`, and of the examples each counterpart keeps those that begin with its name.

    Args:
        names: axes -> the abbreviation in codes, as in `{2: "C2d", 3: "C3d"}`.
        trace: as for `layer`; rules take any number of axes by themselves.
        meta: as for `layer`.
        mirror: as for `layer`; rules are told the number of axes.

    Returns:
        By decoration: the specs, in the order of `names`.
    """

    def declare(factory: Callable[..., Any]) -> tuple[LayerSpec, ...]:
        return tuple(
            replace(_counterpart(factory, axes, name, trace, meta), mirror=mirror) for axes, name in names.items()
        )

    return declare


def _counterpart(
    factory: Callable[..., Any], axes: int, name: str, trace: Callable[..., Rule] | None, meta: bool
) -> LayerSpec:
    bound: Any = partial(factory, axes)
    bound.__doc__ = (factory.__doc__ or "").replace("N-D", f"{axes}-D")
    bound.__globals__ = getattr(factory, "__globals__", {})  # where the names of its annotations are looked up
    about = described("layer", name, bound)
    about["examples"] = tuple(each for each in about["examples"] if each.code.partition("_")[0] == name)
    return LayerSpec(**about, trace=trace, dims=axes, meta=meta)
