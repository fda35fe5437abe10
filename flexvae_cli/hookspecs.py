"""The hooks that a plugin may implement. Each takes no argument, is called lazily, and must not import torch."""

from __future__ import annotations

import pluggy

from flexvae_cli.api import CallbackSpec, LayerSpec, Spec
from flexvae_cli.api.readers import ReaderSpec

hookspec = pluggy.HookspecMarker("flexvae")


@hookspec
def flexvae_layers() -> list[LayerSpec]:  # type: ignore[empty-body]
    """Layers: each factory makes an `nn.Module` that maps (b, c, *space) to a tensor. Declared with `@layer`."""


@hookspec
def flexvae_bottlenecks() -> list[LayerSpec]:  # type: ignore[empty-body]
    """Bottlenecks: each factory makes a module from the encoder's output to `Encoded`. Declared with `@bottleneck`."""


@hookspec
def flexvae_losses() -> list[Spec]:  # type: ignore[empty-body]
    """Losses: each factory makes a function from `Batch` to a scalar tensor. Declared with `@loss`."""


@hookspec
def flexvae_datasets() -> list[ReaderSpec]:  # type: ignore[empty-body]
    """Readers: each factory makes a `Reader`, which gives the samples of a kind of file. Declared with `@reader`."""


@hookspec
def flexvae_callbacks() -> list[CallbackSpec]:  # type: ignore[empty-body]
    """Callbacks: each factory makes a function that is shown every training event. Declared with `@callback`."""


KINDS = {
    "flexvae_layers": "layer",
    "flexvae_bottlenecks": "bottleneck",
    "flexvae_losses": "loss",
    "flexvae_datasets": "reader",
    "flexvae_callbacks": "callback",
}
"""Hook name -> the kind of spec that it returns."""
