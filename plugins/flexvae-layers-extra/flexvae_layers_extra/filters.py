"""Fixed filters: blur against aliasing, and the Haar wavelet."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, Literal

from flexvae_cli.api import (
    Count,
    Mirrored,
    Original,
    Part,
    Range,
    Reach,
    Rule,
    Shape,
    ShapeError,
    Step,
    layer,
    mirrors,
    shuffle,
    unshuffle,
)

if TYPE_CHECKING:
    from torch import nn

Taps = Annotated[int, Range(2, 9)]


def blur_rule(kernel_size: int, stride: int, padding_mode: str) -> Rule:
    """A window over each channel by itself, padded so that a stride of 1 keeps the size."""
    before, behind = (kernel_size - 1) // 2, kernel_size // 2

    def rule(shape: Shape) -> Step:
        space = shape[1:]
        if padding_mode == "reflect" and any(n <= behind for n in space):
            raise ShapeError(f"reflect padding of {behind} does not fit an axis of {min(space)}")
        axes = len(space)
        reach = Reach((Fraction(stride),) * axes, (Fraction(-before),) * axes, (Fraction(behind),) * axes)
        return Step((shape[0], *((n - 1) // stride + 1 for n in space)), 0, 0, reach)

    return rule


def blur_mirror(original: Original) -> Mirrored:
    """Upsampling by the stride, and the same filter behind it."""
    stride = original.values["stride"]
    enlarged = [Part("UpS", {"scale_factor": stride})] if stride > 1 else []
    return Mirrored((*enlarged, original.like(stride=1)))


@layer("Blur", dims=2, trace=blur_rule, mirror=blur_mirror)
def blur(
    kernel_size: Taps = 3, stride: Count = 1, *, padding_mode: Literal["reflect", "replicate"] = "reflect"
) -> nn.Module:
    """Binomial blur: against aliasing, in front of a stride or behind an upsampling (Zhang, 2019, arXiv:1904.11486).

    The filter is the binomial one, [1, 2, 1] / 4 of 3 and [1, 3, 3, 1] / 8 of 4 taps, along both axes; it is fixed.
    `C2d_64_64_3_1_1` and `Blur_4_2` downsample without aliasing, `UpS_2` and `Blur_3` upsample with [1, 3, 3, 1] / 4.

    Args:
        kernel_size: taps of the filter, in pixels.
        stride: pixels from one output to the next.
        padding_mode: what the pixels beyond the border hold.

    Examples:
        Blur: 3x8x7 -> 3x8x7
        Blur_4_2: 3x8x9 -> 3x4x5
        Blur_5_2_padding-mode=replicate: 3x8x8 -> 3x4x4
    """
    from flexvae_layers_extra.filter_blocks import Blur

    return Blur(kernel_size, stride, padding_mode)


@layer("HaarD", trace=lambda: unshuffle(2), mirror=mirrors.inverse("HaarU"))
def haar_down() -> nn.Module:
    """Haar wavelet: half of the size along every axis, in 2^axes bands of all channels; the inverse of HaarU.

    An orthonormal map without parameters, (c, h, w) -> (4 c, h / 2, w / 2). First come the c channels of means, then
    those of differences along w, along h, and along both. `2*HaarD` takes the bands apart once more, as the image
    tokenizers of Cosmos do (Agarwal et al., 2025, arXiv:2501.03575).

    Examples:
        HaarD: 3x8x6 -> 12x4x3
        HaarD: 2x10 -> 4x5
        HaarD: 1x4x6x2 -> 8x2x3x1
    """
    from flexvae_layers_extra.filter_blocks import HaarDown

    return HaarDown()


@layer("HaarU", trace=lambda: shuffle(2), mirror=mirrors.inverse("HaarD"))
def haar_up() -> nn.Module:
    """Inverse Haar wavelet: twice the size along every axis, from 2^axes bands of all channels, as HaarD gives them.

    Examples:
        HaarU: 12x4x3 -> 3x8x6
        HaarU: 4x5 -> 2x10
        HaarU: 8x2x3x1 -> 1x4x6x2
    """
    from flexvae_layers_extra.filter_blocks import HaarUp

    return HaarUp()


LAYERS = [blur, haar_down, haar_up]
