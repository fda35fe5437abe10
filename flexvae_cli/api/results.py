"""The small tuples that cross the border between FlexVAE and a plugin. Shapes: b samples, c channels, space = h w."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class Gaussian(NamedTuple):
    """A diagonal normal distribution: both tensors (b, c, *space)."""

    mean: Tensor
    log_variance: Tensor


class Quantized(NamedTuple):
    """What a quantizing layer makes of its input.

    Attributes:
        x: the quantized input, the same shape, (b, c, *space). In evaluation it is what `from_indices` makes of
            `indices`, bit for bit; in training gradients pass through it.
        loss: the quantizer's own loss, a scalar; None where it asks for nothing.
        indices: the codes, whole numbers, (b, q, *space) with q codes for each position; -1 where a code was left out.
        stats: named scalars for the log, without gradients.
    """

    x: Tensor
    loss: Tensor | None
    indices: Tensor
    stats: Mapping[str, Tensor] = {}


class Encoded(NamedTuple):
    """What a bottleneck makes of the encoder's output.

    Attributes:
        z: the latent that the decoder takes, (b, c, *space).
        posterior: the distribution that `z` was drawn from, where there is one.
        indices: the codes of a quantizer, whole numbers, (b, q, *space) with q codes for each position.
        loss: the own loss of the bottleneck and of every quantizer of the net, a scalar, added to the total.
        stats: named scalars for the log.
    """

    z: Tensor
    posterior: Gaussian | None = None
    indices: Tensor | None = None
    loss: Tensor | None = None
    stats: Mapping[str, Tensor] = {}


class Batch(NamedTuple):
    """What a loss sees of a training step.

    Attributes:
        x: the samples, float32 in [-1, 1], (b, c, *space).
        output: what the decoder gave, the same shape; logits where the reconstruction loss is `bce`.
        reconstruction: `output` as samples in the range of `x`.
        encoded: the bottleneck's result.
    """

    x: Tensor
    output: Tensor
    reconstruction: Tensor
    encoded: Encoded
