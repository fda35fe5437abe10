"""Padding by itself, where a convolution's own is the same on all sides."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, Literal

from flexvae_cli.api import Mirrored, Original, Range, Reach, Rule, Shape, ShapeError, Step, layer

if TYPE_CHECKING:
    from torch import nn

Pixels = Annotated[int, Range(0)]
Mode = Literal["zeros", "reflect", "replicate", "circular"]


def padding_rule(before: tuple[int, ...], behind: tuple[int, ...], padding_mode: str) -> Rule:
    """The input, moved by what stands before it; a number for each axis."""

    def rule(shape: Shape) -> Step:
        for n, p in zip(shape[1:], map(max, before, behind), strict=True):
            if p > n - (padding_mode == "reflect") and padding_mode in ("reflect", "circular"):
                raise ShapeError(
                    f"{padding_mode} padding of {p} does not fit the input of {'x'.join(map(str, shape[1:]))}"
                )
        space = (n + a + b for n, a, b in zip(shape[1:], before, behind, strict=True))
        moved = tuple(Fraction(-n) for n in before)
        return Step((shape[0], *space), 0, 0, Reach((Fraction(1),) * len(before), moved, moved))

    return rule


SIDES = (("front", "back"), ("top", "bottom"), ("left", "right"))


def padding_mirror(original: Original) -> Mirrored:
    """Nothing: the convolution behind it takes the added positions into account."""
    added = (original.values[a] + original.values[b] for a, b in SIDES[-original.axes :])
    return Mirrored((), margin=tuple(n + m for n, m in zip(added, original.margin, strict=True)))


def padded(mode: str, *amounts: int) -> nn.Module:
    """torch's padding of as many axes as there are pairs of amounts, the last axis first."""
    from torch import nn

    axes = len(amounts) // 2
    kinds = {
        "zeros": {1: nn.ZeroPad1d, 2: nn.ZeroPad2d, 3: nn.ZeroPad3d},
        "reflect": {1: nn.ReflectionPad1d, 2: nn.ReflectionPad2d, 3: nn.ReflectionPad3d},
        "replicate": {1: nn.ReplicationPad1d, 2: nn.ReplicationPad2d, 3: nn.ReplicationPad3d},
        "circular": {1: nn.CircularPad1d, 2: nn.CircularPad2d, 3: nn.CircularPad3d},
    }
    module: nn.Module = kinds[mode][axes](amounts)
    return module


@layer(
    "Pad1d",
    dims=1,
    trace=lambda left, right, padding_mode: padding_rule((left,), (right,), padding_mode),
    mirror=padding_mirror,
)
def pad1d(left: Pixels, right: Pixels, *, padding_mode: Mode = "zeros") -> nn.Module:
    """1-D padding, each end by itself: `Pad1d_3_0` puts three zeros in front.

    Args:
        left: positions added in front.
        right: positions added behind.
        padding_mode: what the added positions hold.

    Examples:
        Pad1d_3_0: 2x8 -> 2x11
        Pad1d_1_2_padding-mode=reflect: 2x8 -> 2x11
        Pad1d_2_1_padding-mode=circular: 2x4 -> 2x7
    """
    return padded(padding_mode, left, right)


def pad2d_rule(left: int, right: int, top: int, bottom: int, padding_mode: str) -> Rule:
    """Rows, then columns."""
    return padding_rule((top, left), (bottom, right), padding_mode)


@layer("Pad2d", dims=2, trace=pad2d_rule, mirror=padding_mirror)
def pad2d(
    left: Pixels,
    right: Pixels,
    top: Pixels,
    bottom: Pixels,
    *,
    padding_mode: Mode = "zeros",
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
    return padded(padding_mode, left, right, top, bottom)


def pad3d_rule(left: int, right: int, top: int, bottom: int, front: int, back: int, padding_mode: str) -> Rule:
    """Slices, then rows, then columns."""
    return padding_rule((front, top, left), (back, bottom, right), padding_mode)


@layer("Pad3d", dims=3, trace=pad3d_rule, mirror=padding_mirror)
def pad3d(
    left: Pixels,
    right: Pixels,
    top: Pixels,
    bottom: Pixels,
    front: Pixels,
    back: Pixels,
    *,
    padding_mode: Mode = "zeros",
) -> nn.Module:
    """3-D padding, each side by itself: `Pad3d_0_1_0_1_0_1` adds a voxel at the end of every axis.

    Args:
        left: voxels added in front along the last axis.
        right: voxels added behind along the last axis.
        top: voxels added in front along the middle axis.
        bottom: voxels added behind along the middle axis.
        front: voxels added in front along the first axis.
        back: voxels added behind along the first axis.
        padding_mode: what the added voxels hold.

    Examples:
        Pad3d_0_1_0_1_0_1: 2x4x6x5 -> 2x5x7x6
        Pad3d_1_2_3_0_0_1_padding-mode=reflect: 2x4x6x5 -> 2x5x9x8
        Pad3d_1_0_0_2_1_1_padding-mode=circular: 2x3x4x5 -> 2x5x6x6
    """
    return padded(padding_mode, left, right, top, bottom, front, back)


LAYERS = [pad1d, pad2d, pad3d]
