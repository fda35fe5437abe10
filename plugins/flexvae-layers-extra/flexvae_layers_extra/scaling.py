"""Fixed maps of each number between ranges: what stands at the ends of a net, or next to its latent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from flexvae_cli.api import Mirrored, Original, Range, Rule, layer, mirrors, same

if TYPE_CHECKING:
    from torch import nn

Positive = Annotated[float, Range(1e-6)]


@layer("SoftClamp", trace=same, mirror=mirrors.in_order)
def soft_clamp(limit: Positive = 3.0) -> nn.Module:
    """limit * tanh(x / limit): small numbers stay as they are, large ones end at the limit.

    The tiny autoencoder TAESD holds its latents so (github.com/madebyollin/taesd).

    Args:
        limit: the largest magnitude that goes out.

    Examples:
        SoftClamp: 4x8x6 -> 4x8x6
        SoftClamp_1.5: 4x10 -> 4x10
    """
    from flexvae_layers_extra.blocks import SoftClamp

    return SoftClamp(limit)


def rescale_rule(multiply: float) -> Rule:
    """The shape stays; nothing times zero is a mistake."""
    if multiply == 0:
        raise ValueError("multiply wants another number than 0, which leaves nothing of the input")
    return same()


def rescale_mirror(original: Original) -> Mirrored:
    """The way back: (x - add) / multiply."""
    multiply, add = original.values["multiply"], original.values["add"]
    return Mirrored((original.like(multiply=1 / multiply, add=0.0 - add / multiply),))


@layer("Rescale", trace=rescale_rule, mirror=rescale_mirror)
def rescale(multiply: float, add: float = 0.0) -> nn.Module:
    """x * multiply + add, both fixed: `Rescale_0.5_0.5` takes [-1, 1] to [0, 1], `Rescale_2_-1` takes it back.

    Args:
        multiply: what x is multiplied with; not 0.
        add: what is added then.

    Examples:
        Rescale_0.5_0.5: 3x8x6 -> 3x8x6
        Rescale_2_-1: 3x10 -> 3x10
        Rescale_0.18215: 4x2x3x2 -> 4x2x3x2
    """
    from flexvae_layers_extra.blocks import Rescale

    return Rescale(multiply, add)


LAYERS = [soft_clamp, rescale]
