"""Turns a structure into modules, and measures layers that have no static rule."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from flexvae_cli import plugins
from flexvae_cli.api import Encoded, LayerSpec, Reach, Shape, ShapeError, Step
from flexvae_cli.api.trace import local, text
from flexvae_cli.codes import Bound
from flexvae_cli.engine.bottlenecks.quantized import QuantizedBottleneck, QuantizedEntry
from flexvae_cli.engine.vae import VAE
from flexvae_cli.entry_points import CORE
from flexvae_cli.errors import FlexVAEError, ResourceError, UsageError
from flexvae_cli.faults import fault
from flexvae_cli.net import Net
from flexvae_cli.structure import Item, Leaf


class Addition(nn.Module):
    """A residual entry: body(x) + shortcut(x); an empty shortcut is the identity."""

    def __init__(self, body: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + self.shortcut(x)


def build_vae(net: Net, *, logits: bool = False, device: str | torch.device = "cpu") -> VAE:
    """The net as a module with fresh weights, drawn from the global generator.

    Args:
        net: what to build.
        logits: whether the decoder's output is logits.
        device: where the weights are created; `meta` allocates nothing.

    Raises:
        UsageError: a factory refuses its arguments; the message names entry and code.
        ResourceError: the weights alone exceed this machine's memory.
    """
    _refuse_giants(net)
    with torch.device(device):
        return VAE(
            build_sequence(net.encoder.expanded(), "encoder"),
            build_layer(net.bottleneck, "model.bottleneck"),
            build_sequence(net.decoder.expanded(), "decoder"),
            logits=logits,
        )


def build_sequence(items: Iterable[Item], part: str = "") -> nn.Sequential:
    """The items in order; a layer's place in the `state_dict` is its key in the structure.

    Args:
        part: what the keys are preceded by in the log, such as `encoder`.
    """
    return nn.Sequential(*(build_item(item, part) for item in items))


def build_item(item: Item, part: str = "") -> nn.Module:
    if isinstance(item, Leaf):
        return build_layer(item.bound, item.where, f"{part}.{item.key}".lstrip("."))
    return Addition(build_sequence(item.body, part), build_sequence(item.shortcut, part))


def build_layer(bound: Bound, where: str, key: str = "") -> nn.Module:
    """A layer or a bottleneck, one that quantizes in the form that its place asks for."""
    module, spec = _made(bound, where), bound.spec
    if not (isinstance(spec, LayerSpec) and spec.quantizes):
        return module
    return QuantizedBottleneck(module) if spec.kind == "bottleneck" else QuantizedEntry(module, key)


def _made(bound: Bound, where: str) -> nn.Module:
    """Call a factory; what it raises comes back with the entry and the code that caused it."""
    try:
        module = bound.build()
    except FlexVAEError:
        raise
    except Exception as error:  # a factory is a stranger's code: whatever it raises is reported with its place
        own = isinstance(error, ValueError)  # words for the user
        words = str(error) if own else fault(error, bound.spec.factory.__module__)
        raise UsageError(f"{_named(bound)} cannot be built: {words}", where=where) from error
    if not isinstance(module, nn.Module):
        raise UsageError(f"{_named(bound)} makes a {type(module).__name__}, not a torch module", where=where)
    return module


def _named(bound: Bound) -> str:
    """A code, and the plugin that it comes with, where that is not the core."""
    origin = plugins.installed().origin(bound.spec)
    return bound.code if origin.partition(" ")[0] in ("", CORE) else f"{bound.code} ({origin})"


def _refuse_giants(net: Net) -> None:
    needed = 4 * net.parameters
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else math.inf
    if needed > pages:
        have = f"{pages / 2**30:.1f} GiB"
        raise ResourceError(f"the weights alone need {needed / 2**30:.1f} GiB; this machine has {have}")


def meta_step(bound: Bound, shape: Shape) -> Step:
    """What a layer without a static rule does to a shape: a run on torch's meta device, nothing is computed.

    Raises:
        ShapeError: the layer refuses the shape, or cannot run there.
    """
    try:
        with torch.device("meta"), torch.no_grad():
            module = build_layer(bound, "").eval()
            out = module(torch.empty(2, *shape, device="meta"))
    except FlexVAEError as error:
        raise ShapeError(error.problems[0].what) from None
    except Exception as error:  # a stranger's forward
        raise ShapeError(f"does not run on {text(shape)}: {str(error).splitlines()[0]}") from None
    out = out.z if isinstance(out, Encoded) else out
    if not isinstance(out, Tensor) or out.dim() < 2:
        raise ShapeError(f"gives a {type(out).__name__}, not a tensor (b, c, *space)")
    gives = tuple(out.shape[1:])
    if len(gives) != len(shape):
        raise ShapeError(f"gives {text(gives)}; it must keep the axes of the {text(shape)} that comes in")
    axes = local(len(shape) - 1)
    reach = Reach(axes.stride, axes.low, axes.high, everywhere=True)
    parameters = sum(p.numel() for p in module.parameters() if p.requires_grad)
    return Step(gives, parameters, 0, reach, ("measured on the meta device; multiply-adds are unknown",))
