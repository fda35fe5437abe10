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

import pluggy

from flexvae_cli.api.docstring import Example
from flexvae_cli.api.losses import REDUCTIONS, LossSpec, loss
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

API_VERSION = 1
"""What a plugin module states as `FLEXVAE_API`; it changes only when a released plugin would break."""

hookimpl = pluggy.HookimplMarker("flexvae")

__all__ = [
    "API_VERSION",
    "REDUCTIONS",
    "Batch",
    "Count",
    "Dimension",
    "Encoded",
    "Example",
    "Gaussian",
    "Ints",
    "LayerSpec",
    "LossSpec",
    "Padding",
    "Param",
    "Probability",
    "Quantized",
    "Range",
    "Reach",
    "Rule",
    "Shape",
    "ShapeError",
    "Size",
    "Spec",
    "Step",
    "WeightFile",
    "add",
    "attention",
    "bottleneck",
    "chain",
    "conv",
    "conv_transpose",
    "group_norm",
    "hookimpl",
    "layer",
    "loss",
    "pointwise",
    "pool",
    "resize",
    "same",
    "scale",
    "shuffle",
    "unshuffle",
]
