"""Padding by itself, where a convolution's own is the same on all sides."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, Literal

from flexvae_cli.api import Range, Reach, Rule, Shape, ShapeError, Step, layer

if TYPE_CHECKING:
    from torch import nn

Pixels = Annotated[int, Range(0)]


def padding_rule(left: int, right: int, top: int, bottom: int, padding_mode: str) -> Rule:
    """The input, moved by what stands before it."""
    before, behind = (top, left), (bottom, right)

    def rule(shape: Shape) -> Step:
        for n, p in zip(shape[1:], map(max, before, behind), strict=True):
            if p > n - (padding_mode == "reflect") and padding_mode in ("reflect", "circular"):
                raise ShapeError(f"{padding_mode} padding of {p} does not fit the input of {shape[1]}x{shape[2]}")
        space = (n + a + b for n, a, b in zip(shape[1:], before, behind, strict=True))
        moved = tuple(Fraction(-n) for n in before)
        return Step((shape[0], *space), 0, 0, Reach((Fraction(1),) * 2, moved, moved))

    return rule


@layer("Pad2d", dims=2, trace=padding_rule)
def pad2d(
    left: Pixels,
    right: Pixels,
    top: Pixels,
    bottom: Pixels,
    *,
    padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
) -> nn.Module:
    """2-D padding, each side by itself: `Pad2d_0_1_0_1` adds a column on the right and a row at the bottom.

    Latent diffusion's autoencoders pad so in front of a convolution of stride 2.

    Args:
        left: columns added on the left, in pixels.
        right: columns added on the right.
        top: rows added at the top.
        bottom: rows added at the bottom.
        padding_mode: what the added pixels hold.

    Examples:
        Pad2d_0_1_0_1: 3x8x6 -> 3x9x7
        Pad2d_1_2_3_0_padding-mode=reflect: 3x8x6 -> 3x11x9
        Pad2d_2_0_1_1_padding-mode=circular: 3x4x5 -> 3x6x7
    """
    from torch import nn

    kinds = {
        "zeros": nn.ZeroPad2d,
        "reflect": nn.ReflectionPad2d,
        "replicate": nn.ReplicationPad2d,
        "circular": nn.CircularPad2d,
    }
    module: nn.Module = kinds[padding_mode]((left, right, top, bottom))
    return module


LAYERS = [pad2d]
