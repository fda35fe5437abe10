"""What a plugin may import: standard library and pluggy only, so that declaring a layer costs nothing.

>>> from flexvae_cli.api import layer, hookimpl, same
>>> @layer("Sine", trace=same)
... def sine(frequency: float = 1.0):
...     '''Sine of the input.
...
...     Args:
...         frequency: radians per unit of input.
...     '''
...     from mypackage.blocks import Sine
...     return Sine(frequency)
>>> sine.usage
'Sine_[frequency=1]'
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import pluggy

from flexvae_cli.api import events, mirrors
from flexvae_cli.api.callbacks import CallbackSpec, Observer, callback
from flexvae_cli.api.docstring import Example
from flexvae_cli.api.family import layer_family
from flexvae_cli.api.losses import REDUCTIONS, LossSpec, loss
from flexvae_cli.api.mirror import Mirrored, Original, Part
from flexvae_cli.api.readers import BadFile, Header, Reader, ReaderSpec, Reading, reader
from flexvae_cli.api.results import Batch, Encoded, Gaussian, Quantized
from flexvae_cli.api.spec import (
    Count,
    Dimension,
    Ints,
    LayerSpec,
    Padding,
    Param,
    Probability,
    Range,
    Size,
    Spec,
    WeightFile,
    bottleneck,
    layer,
)
from flexvae_cli.api.trace import (
    Reach,
    Rule,
    Shape,
    ShapeError,
    Step,
    add,
    attention,
    chain,
    conv,
    conv_transpose,
    group_norm,
    pointwise,
    pool,
    resize,
    same,
    scale,
    shuffle,
    unshuffle,
)

if TYPE_CHECKING:
    from flexvae_cli import load_model
    from flexvae_cli.errors import UsageError as UserError
    from flexvae_cli.ui import emit

API_VERSION = 1
"""What a plugin module states as `FLEXVAE_API`; it changes only when a released plugin would break."""

hookimpl = pluggy.HookimplMarker("flexvae")

__all__ = [
    "API_VERSION",
    "REDUCTIONS",
    "BadFile",
    "Batch",
    "CallbackSpec",
    "Count",
    "Dimension",
    "Encoded",
    "Example",
    "Gaussian",
    "Header",
    "Ints",
    "LayerSpec",
    "LossSpec",
    "Mirrored",
    "Observer",
    "Original",
    "Padding",
    "Param",
    "Part",
    "Probability",
    "Quantized",
    "Range",
    "Reach",
    "Reader",
    "ReaderSpec",
    "Reading",
    "Rule",
    "Shape",
    "ShapeError",
    "Size",
    "Spec",
    "Step",
    "UserError",
    "WeightFile",
    "add",
    "attention",
    "bottleneck",
    "callback",
    "chain",
    "conv",
    "conv_transpose",
    "emit",
    "events",
    "group_norm",
    "hookimpl",
    "layer",
    "layer_family",
    "load_model",
    "loss",
    "mirrors",
    "pointwise",
    "pool",
    "reader",
    "resize",
    "same",
    "scale",
    "shuffle",
    "unshuffle",
]

_LATE = {
    "UserError": ("flexvae_cli.errors", "UsageError"),
    "emit": ("flexvae_cli.ui", "emit"),
    "load_model": ("flexvae_cli", "load_model"),
}
"""What the subcommands of plugins use: no declaration of a layer waits for it."""


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _LATE[name]
    return getattr(import_module(module), attribute)
