"""Finds what can be fused in a net, and lets it compute so."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from flexvae_cli.engine.build import build_sequence
from flexvae_cli.engine.fusing.attention import attend
from flexvae_cli.engine.fusing.fusion import Fusion, offers
from flexvae_cli.engine.fusing.norm_silu import NormSilu, norm_silu
from flexvae_cli.engine.fusing.padding import PaddedConvolution
from flexvae_cli.engine.fusing.strided import StridedSum
from flexvae_cli.engine.fusing.upsampling import UpsampledConvolution
from flexvae_cli.errors import UsageError
from flexvae_cli.structure import Item

VARIABLE = "FLEXVAE_FUSE"
Wanted = Literal["auto", "on", "off"]
Finder = Callable[[nn.Module, nn.Module], Fusion | None]


@dataclass(frozen=True)
class Chain:
    """What a list of layers computes, with neighbours as one; it takes the place of the list's `forward`.

    Attributes:
        steps: names in the list, and the layer or the fusion that they stand for, in order.
    """

    steps: tuple[tuple[tuple[str, ...], nn.Module], ...]

    def __call__(self, x: Tensor) -> Tensor:
        for _, step in self.steps:
            x = step(x)
        return x


@dataclass(frozen=True, slots=True)
class Fused:
    """What computes as one: names in the net, as in `decoder.6`, and in which way."""

    names: tuple[str, ...]
    what: str


def fuse(
    net: nn.Module, wanted: Wanted = "auto", *, wide_norms: bool = True, apart: Collection[nn.Module] = ()
) -> None:
    """Let neighbours in every list of a net compute as one, and blocks in the form that is faster.

    Args:
        net: whatever it consists of; names, parameters and `state_dict` stay as they are.
        wanted: `auto` where `rules` say that it pays, `on` wherever it can be done, `off` nowhere.
        wide_norms: whether norms compute in fp32 under bf16 and fp16.
        apart: layers that are called by themselves, such as those that are recomputed.
    """
    if wanted == "off":
        return
    always = wanted == "on"
    finders = _finders(wide_norms=wide_norms, always=always)
    for module in net.modules():
        if type(module) is nn.Sequential:
            chain = _joined(module, finders, set(apart))
            if chain is not None:
                module.forward = chain  # type: ignore[method-assign, assignment]
        if offers(module, "norm_silu"):
            module.norm_silu = partial(norm_silu, wide=wide_norms, always=always)  # type: ignore[assignment]
        if offers(module, "attend"):
            module.attend = attend  # type: ignore[assignment]


def joined(sequence: nn.Sequential) -> nn.Sequential | None:
    """The same list once more, its neighbours computing as one where it pays, what is inside of them as it is; None
    where no two of them can."""
    chain = _joined(sequence, _finders(wide_norms=True, always=False), set())
    if chain is None:
        return None
    twin = nn.Sequential(*sequence)
    twin.forward = chain  # type: ignore[method-assign, assignment]
    return twin


def _finders(*, wide_norms: bool, always: bool) -> list[Finder]:
    return [
        partial(UpsampledConvolution.of, always=always),
        partial(NormSilu.of, wide=wide_norms, always=always),
        partial(StridedSum.of, always=always),
        partial(PaddedConvolution.of, always=always),
    ]


def _joined(sequence: nn.Sequential, finders: list[Finder], apart: set[nn.Module]) -> Chain | None:
    """What a list computes with neighbours as one; None where none are."""
    steps = tuple(_steps(sequence, finders, apart))
    return Chain(steps) if any(isinstance(step, Fusion) for _, step in steps) else None


def wanted_here(fuse: Wanted) -> Wanted:
    """What a caller wants, or where that is `auto`, what the environment variable `FLEXVAE_FUSE` says.

    Raises:
        UsageError: it says something else.
    """
    told = os.environ.get(VARIABLE, "auto")
    match told:
        case "auto" | "on" | "off":
            return told if fuse == "auto" else fuse
    raise UsageError(f"{VARIABLE} is '{told}'", hint="use auto, on or off")


def _steps(
    sequence: nn.Sequential, finders: list[Finder], apart: set[nn.Module]
) -> Iterator[tuple[tuple[str, ...], nn.Module]]:
    """The layers of a list, each alone or with the next."""
    named = _entries(sequence)
    while named:
        (name, layer), after = named[0], named[1:2]
        fusion = None
        if after and apart.isdisjoint((layer, after[0][1])):
            found = (finder(layer, after[0][1]) for finder in finders)
            fusion = next((each for each in found if each is not None), None)
        yield ((name,), layer) if fusion is None else ((name, after[0][0]), fusion)
        del named[: 1 if fusion is None else 2]


def steps_of(sequence: nn.Module) -> list[tuple[tuple[str, ...], nn.Module]]:
    """What a list calls, one after the other: its layers, or what stands for two of them."""
    chain = _chain(sequence)
    return [((name,), layer) for name, layer in _entries(sequence)] if chain is None else list(chain.steps)


def _chain(module: nn.Module) -> Chain | None:
    """What a list computes where `fuse` joined some of it, in a list that is recomputed too."""
    found = inspect.unwrap(module.forward)
    return found if isinstance(found, Chain) else None


def _entries(sequence: nn.Module) -> list[tuple[str, nn.Module]]:
    """The layers of a list by name; one that stands in it twice is there twice."""
    inside = sequence.named_modules(remove_duplicate=False)
    return [(name, layer) for name, layer in inside if name and "." not in name]


def would_fuse(parts: Mapping[str, Sequence[Item]]) -> list[Fused]:
    """What could be joined in lists of layers, by their names; nothing is computed.

    Raises:
        UsageError: a factory refuses its arguments.
    """
    found = []
    for part, items in parts.items():
        with torch.device("meta"):
            net = build_sequence(items, part)
        fuse(net)
        found += fused_in(net, part)
    return found


def fused_in(net: nn.Module, called: str = "") -> list[Fused]:
    """All that `fuse` joined in a net, where its rules say that it pays; blocks with a norm and a SiLU inside too.

    Args:
        net: the net.
        called: its name, which is put in front of those in it.
    """
    found = []
    for name, module in net.named_modules(prefix=called):
        chain = _chain(module)
        for names, step in chain.steps if chain else ():
            if isinstance(step, Fusion):
                found.append(Fused(tuple(f"{name}.{each}".lstrip(".") for each in names), step.what))
        if isinstance(vars(module).get("norm_silu"), partial) and offers(module, "norm_silu"):
            found.append(Fused((name,), NormSilu.what))
    return found
