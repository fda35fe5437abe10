"""A spec is a factory described by its own signature and docstring: parser, help, errors and docs all read it."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from flexvae_cli.api.docstring import Example, parse_docstring
from flexvae_cli.api.mirror import MirrorRule
from flexvae_cli.api.param import (
    NAME,
    Count,
    Dimension,
    Ints,
    Padding,
    Param,
    Probability,
    Range,
    Size,
    WeightFile,
)
from flexvae_cli.api.trace import Rule

__all__ = [
    "NAME",
    "Count",
    "Dimension",
    "Ints",
    "LayerSpec",
    "Padding",
    "Param",
    "Probability",
    "Range",
    "Size",
    "Spec",
    "WeightFile",
    "bottleneck",
    "described",
    "layer",
]


@dataclass(frozen=True)
class Spec:
    """A named factory of one kind: `layer`, `bottleneck` or `loss`. Calling it calls the factory."""

    kind: str
    name: str
    factory: Callable[..., Any]
    params: tuple[Param, ...]
    summary: str = ""
    details: str = ""
    examples: tuple[Example, ...] = ()

    def __call__(self, *args: Any, **values: Any) -> Any:
        return self.factory(*args, **values)

    @property
    def usage(self) -> str:
        """`C2d_in-channels_out-channels_kernel-size_[stride=1]_...`, options behind the positionals."""
        parts = [self.name]
        for param in self.params:
            default = "" if param.default is None else param.format(param.default)
            if param.required:
                parts.append(param.option if param.positional else f"{param.option}=...")
            elif param.positional:
                parts.append(f"[{param.option}={default}]" if default else f"[{param.option}]")
            else:
                parts.append(f"[{param.option}={default or '...'}]")
        return "_".join(parts)

    def param(self, name: str) -> Param | None:
        """The parameter of that Python name or option name."""
        return next((p for p in self.params if name in (p.name, p.option)), None)


@dataclass(frozen=True)
class LayerSpec(Spec):
    """A spec whose product maps (b, c, *space) to (b, c', *space').

    Attributes:
        trace: makes the static rule of a layer from the parameters that it names (see `flexvae_cli.api.trace`).
        dims: the number of spatial axes that the layer takes; None where it takes any.
        meta: whether the module can run on torch's meta device.
        quantizes: whether the module returns `Quantized`; as a bottleneck it is known by the same name.
        mirror: what stands for the layer in a mirrored decoder; None where it does not say.
    """

    trace: Callable[..., Rule] | None = None
    dims: int | None = None
    meta: bool = True
    quantizes: bool = False
    mirror: MirrorRule | None = None
    _traced: tuple[str, ...] = field(default=(), init=False, repr=False)

    def __post_init__(self) -> None:
        if self.trace is not None:
            names = tuple(inspect.signature(self.trace).parameters)
            object.__setattr__(self, "_traced", names)

    def rule(self, values: Mapping[str, Any]) -> Rule | None:
        """The static rule for these parameter values, or None where the layer has none.

        Raises:
            ValueError: the values do not go together, such as channels that groups do not divide.
        """
        if self.trace is None:
            return None
        return self.trace(**{name: values[name] for name in self._traced if name in values})

    def as_bottleneck(self) -> LayerSpec:
        """The same quantizer, to stand between encoder and decoder."""
        return replace(self, kind="bottleneck")


def layer(
    name: str,
    *,
    trace: Callable[..., Rule] | None = None,
    dims: int | None = None,
    meta: bool = True,
    quantizes: bool = False,
    mirror: MirrorRule | None = None,
) -> Callable[[Callable[..., Any]], LayerSpec]:
    """Declare a layer: the decorated factory's signature is its schema, its docstring its help.

    Args:
        name: the abbreviation in codes: letters and digits, begins with a letter, at most 32.
        trace: a function that takes some of the factory's parameters, by name, and returns a `Rule`.
        dims: the number of spatial axes that the layer takes; None where it takes any.
        meta: False where the module cannot run on torch's meta device.
        quantizes: True where the module returns `Quantized`. It then also offers `from_indices(indices)`: whole numbers
            (b, q, *space) to (b, c, *space). Where its codes are all of one size, `bits` is what one of them costs. It
            can be written in a structure and as `[model] bottleneck`, and is always given float32 (or float64), with
            autocast off.
        mirror: a function from a layer to what stands for it in the decoder that `flexvae mirror` writes (see
            `flexvae_cli.api.mirror`).
    """

    def declare(factory: Callable[..., Any]) -> LayerSpec:
        about = described("layer", name, factory)
        return LayerSpec(**about, trace=trace, dims=dims, meta=meta, quantizes=quantizes, mirror=mirror)

    return declare


def bottleneck(name: str, *, trace: Callable[..., Rule]) -> Callable[[Callable[..., Any]], LayerSpec]:
    """Declare a bottleneck: its module takes the encoder's output (b, c, *space) and returns `Encoded`.

    A module with a prior also offers `sample(shape, generator=None)`: latents of `shape` (b, c, *space), as the decoder
    takes them, drawn from the prior. `generator` is a `torch.Generator` on the CPU, by default torch's global one;
    equal generators give equal latents. The latents may be on any device; the caller moves them.

    Args:
        name: the abbreviation in codes, as of a layer.
        trace: gives the static rule, whose shape is that of the latent that the decoder takes.
    """

    def declare(factory: Callable[..., Any]) -> LayerSpec:
        return LayerSpec(**described("bottleneck", name, factory), trace=trace)

    return declare


def described(kind: str, name: str, factory: Callable[..., Any]) -> dict[str, Any]:
    """What signature and docstring of a factory say: the fields of a `Spec`.

    Raises:
        ValueError: the name is no name, or a parameter has no type that codes know.
    """
    if not NAME.fullmatch(name):
        raise ValueError(f"{kind} name {name!r}: want 1 to 32 letters and digits, a letter first")
    doc = parse_docstring(inspect.getdoc(factory) or "")
    hints = _annotations(factory)
    params = []
    for parameter in inspect.signature(factory).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise ValueError(f"{kind} {name}: a factory names all its parameters; *{parameter.name} hides some")
        kind_of, choices, bounds = _kind(hints.get(parameter.name), f"{kind} {name}: parameter {parameter.name}")
        if kind_of == "file" and parameter.name != "weights":
            raise ValueError(f"{kind} {name}: a file of weights is the parameter 'weights', not '{parameter.name}'")
        required = parameter.default is parameter.empty
        params.append(
            Param(
                name=parameter.name,
                kind=kind_of,
                positional=parameter.kind is not parameter.KEYWORD_ONLY,
                required=required,
                default=None if required else parameter.default,
                help=doc.params.get(parameter.name, ""),
                choices=choices,
                range=bounds,
            )
        )
    return {
        "kind": kind,
        "name": name,
        "factory": factory,
        "params": tuple(params),
        "summary": doc.summary,
        "details": doc.details,
        "examples": doc.examples,
    }


def _annotations(factory: Callable[..., Any]) -> dict[str, Any]:
    """The parameters' types. The return type is left out: it names torch, which is not imported here."""

    annotations = {
        name: parameter.annotation
        for name, parameter in inspect.signature(factory).parameters.items()
        if parameter.annotation is not parameter.empty
    }
    holder = type("Parameters", (), {"__annotations__": annotations})
    return typing.get_type_hints(holder, globalns=getattr(factory, "__globals__", {}), include_extras=True)


def _kind(hint: Any, where: str) -> tuple[Any, tuple[Any, ...], Range]:
    """A type hint as (kind, choices, range); `X | None` reads as X."""
    bounds, marks = Range(), []
    arguments = typing.get_args(hint)
    if len(arguments) == 2 and type(None) in arguments:
        hint = next(a for a in arguments if a is not type(None))
    if typing.get_origin(hint) is Annotated:
        hint, *marks = typing.get_args(hint)
    for mark in marks:
        bounds = mark if isinstance(mark, Range) else bounds
    for mark in marks:
        if mark in ("size", "ints", "file"):
            return mark, (), bounds
    if typing.get_origin(hint) is Literal:
        return "choice", typing.get_args(hint), bounds
    if hint in (int, float, bool, str):
        return hint.__name__, (), bounds
    raise ValueError(f"{where} wants a type: int, float, bool, str, Literal[...], Size or Ints")
