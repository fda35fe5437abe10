"""Mirror rules to choose from, as in `@layer("GN", trace=group_norm, mirror=mirrors.in_order)`.

A window of span k (dilation included), stride s and padding P (both sides together) makes m of n positions, where
n = s m + r and r is one of the s numbers from k - P - s to k - P - 1. A decoder that makes s m + r of m undoes it for
the sizes of that r. The r nearest to 0 is taken: 0 for windows that are padded as usual.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from math import prod

from flexvae_cli.api.mirror import Mirrored, MirrorRule, Original, Part
from flexvae_cli.api.trace import Shape, per_axis, text


def itself(original: Original) -> Mirrored:
    """A block that keeps channels and size."""
    return Mirrored((original.like(),))


def in_order(original: Original) -> Mirrored:
    """Norms, activations, dropout: the same layer, and neighbours of this kind stay in their order."""
    return Mirrored((original.like(),), keeps_order=True)


def nothing(original: Original) -> Mirrored:  # noqa: ARG001
    """A layer that the decoder has no counterpart of, such as a quantizer within the encoder."""
    return Mirrored(())


def swapped(original: Original) -> Mirrored:
    """A block that keeps the size: `in_channels` and `out_channels` change places."""
    values = original.values
    return Mirrored((original.like(in_channels=values["out_channels"], out_channels=values["in_channels"]),))


def inverse(name: str, **parameters: str) -> MirrorRule:
    """A layer that has an inverse.

    Args:
        name: the inverse's abbreviation.
        parameters: its parameters, each with the name of the original's parameter that has its value.
    """
    return lambda original: Mirrored((Part(name, {new: original.values[old] for new, old in parameters.items()}),))


def impossible(instead: str) -> MirrorRule:
    """A layer that nothing undoes; `instead` says what to write by hand."""

    def rule(original: Original) -> Mirrored:  # noqa: ARG001
        raise ValueError(instead)

    return rule


@dataclass(frozen=True, slots=True)
class Window:
    """A window along one axis; `padding` is that of both sides together."""

    kernel: int
    stride: int
    padding: int
    dilation: int

    @property
    def span(self) -> int:
        return self.dilation * (self.kernel - 1) + 1

    @property
    def rests(self) -> list[int]:
        """Every r of n = stride * m + r, those nearest to 0 first."""
        most = self.span - self.padding - 1
        return sorted(range(most - self.stride + 1, most + 1), key=lambda rest: (abs(rest), rest))


def convolution(original: Original) -> Mirrored:
    """A convolution with parameters named as those of `C2d`: its channels swapped, its stride made an upsampling.

    Kernels of a stride become odd, so that the decoder's windows have a middle; dilation, groups and the like stay.
    """
    values, done = original.values, (0,) * original.axes
    windows = _windows(original)
    strides = tuple(window.stride for window in windows)
    back = {"in_channels": values["out_channels"], "out_channels": values["in_channels"], "stride": 1}
    if set(strides) == {1}:
        return Mirrored((original.like(**back, **_grown(original, windows)),), margin=done)
    if original.upsampling == "transposed" and original.name == f"C{original.axes}d":
        return Mirrored((_transposed(original, windows),), margin=done)
    if original.upsampling == "pixel-shuffle":
        factor = _one(strides, "PS enlarges every axis alike")
        back["out_channels"] *= prod(strides)
        shuffled = original.like(**back, **_shuffled(original, windows))
        return Mirrored((shuffled, Part("PS", {"upscale_factor": factor})), margin=done)
    grown = original.like(**back, **_grown(original, windows))
    return Mirrored((_upsampled(strides), grown), margin=done)


def transposed_convolution(original: Original) -> Mirrored:
    """A transposed convolution, which enlarges: the convolution whose adjoint it is."""
    values = original.values
    kept = {key: values[key] for key in ("groups", "bias", "causal", "weight_norm", "dilation") if key in values}
    window = {key: values[key] for key in ("kernel_size", "stride", "padding")}
    back = {"in_channels": values["out_channels"], "out_channels": values["in_channels"]}
    return Mirrored((Part(f"C{original.axes}d", {**back, **window, **kept}),))


def pooling(original: Original) -> Mirrored:
    """Pooling: nearest upsampling by its stride, whatever stands for the stride of convolutions."""
    windows = _windows(original)
    for window in windows:
        if 0 not in window.rests:
            raise ValueError(
                "its windows leave rows at the border out, which upsampling cannot bring back; "
                "give it a padding, or write the decoder's layer by hand, such as CT2d"
            )
    strides = tuple(window.stride for window in windows)
    return Mirrored(() if set(strides) == {1} else (_upsampled(strides),), margin=(0,) * original.axes)


def upsampling(original: Original) -> Mirrored:
    """Upsampling within an encoder: pooling by the same factor."""
    return Mirrored((Part("MaxP", {"kernel_size": original.values["scale_factor"]}),))


def _windows(original: Original) -> list[Window]:
    values, axes = original.values, original.axes
    stride = values["kernel_size"] if values["stride"] is None else values["stride"]
    each = (values["kernel_size"], stride, values["padding"], values.get("dilation", 1))
    kernels, strides, paddings, dilations = (per_axis(value, axes) for value in each)
    found = [
        Window(k, s, 2 * p + margin, d)
        for k, s, p, d, margin in zip(kernels, strides, paddings, dilations, original.margin, strict=True)
    ]
    lead = values.get("causal", False)  # such a layer pads in front by itself
    return [replace(w, padding=w.padding + w.span - w.stride) if lead else w for w in found]


def _is_causal(original: Original, windows: list[Window]) -> bool:
    if not original.values.get("causal"):
        return False
    if 0 not in windows[0].rests:
        raise ValueError("a causal convolution cannot take the padding in front of it back")
    return True


def _grown(original: Original, windows: list[Window]) -> dict[str, int | Shape]:
    """Kernel and padding of the convolution behind the upsampling: it adds the rest to the size, r positions."""
    if _is_causal(original, windows):  # pads by itself, so that the size stays
        return {"kernel_size": windows[0].kernel}
    found = [next(_fitting(w, w.kernel if w.stride == 1 else _odd(w.kernel), w.rests)) for w in windows]
    return {"kernel_size": _short(k for k, _ in found), "padding": _short(p for _, p in found)}


def _shuffled(original: Original, windows: list[Window]) -> dict[str, int | Shape]:
    """Kernel and padding of the convolution in front of PS, whose positions are `stride` of the window's each."""
    near = [_odd(max(2, -(-w.span // w.stride))) if w.kernel > 1 else 1 for w in windows]
    if _is_causal(original, windows):
        return {"kernel_size": near[0], "dilation": 1}
    rests = [[rest // w.stride for rest in w.rests if rest % w.stride == 0] for w in windows]
    plain = [Window(k, 1, w.padding, 1) for k, w in zip(near, windows, strict=True)]
    found = [next(_fitting(w, w.kernel, rest)) for w, rest in zip(plain, rests, strict=True)]
    changed = {"kernel_size": _short(k for k, _ in found), "padding": _short(p for _, p in found)}
    return {**changed, "dilation": 1}


def _fitting(window: Window, kernel: int, rests: list[int]) -> Iterator[tuple[int, int]]:
    """Kernels, from `kernel` up, with a padding on each side that adds a rest to the size, 0 where that is one."""
    sizes = range(kernel, kernel + window.padding + 3)
    for size, rest in sorted(product(sizes, rests), key=lambda pair: (pair[1] != 0, pair[0])):
        total = window.dilation * (size - 1) + rest
        if total >= 0 and total % 2 == 0:
            yield size, total // 2
    raise ValueError("no padding of a convolution undoes its own; write the decoder's layer by hand")


def _transposed(original: Original, windows: list[Window]) -> Part:
    """The transposed convolution with the same kernel, stride and, where it is even, padding."""
    values = original.values
    if values.get("padding_mode", "zeros") != "zeros":
        raise ValueError(
            f"a transposed convolution knows no padding but zeros; take padding-mode out of {original.name}"
        )
    shared = ("kernel_size", "stride", "groups", "bias", "causal", "weight_norm")
    same = {key: values[key] for key in shared if key in values}
    same |= {"in_channels": values["out_channels"], "out_channels": values["in_channels"]}
    if not _is_causal(original, windows):
        cuts = [_cut(window) for window in windows]
        same |= {"padding": _short(p for p, _ in cuts), "output_padding": _short(extra for _, extra in cuts)}
    if values["dilation"] != 1:
        same["dilation"] = values["dilation"]
    return Part(f"CT{original.axes}d", same)


def _cut(window: Window) -> tuple[int, int]:
    """Padding and output padding of a transposed convolution from m to stride * m + r."""
    for rest in window.rests:
        for padding in (window.padding // 2, *range(window.span)):
            extra = window.stride + rest - window.span + 2 * padding
            if 0 <= extra < max(window.stride, window.dilation):
                return padding, extra
    raise ValueError("no transposed convolution undoes its padding; write the decoder's layer by hand")


def _upsampled(strides: Shape) -> Part:
    return Part("UpS", {"scale_factor": _short(strides)})


def _odd(kernel: int) -> int:
    """1 stays 1; other kernels become odd, by one less, and at least 3."""
    return 1 if kernel == 1 else max(3, kernel if kernel % 2 else kernel - 1)


def _short(numbers: Iterator[int] | Shape) -> int | Shape:
    """One number where all axes have the same."""
    found = tuple(numbers)
    return found[0] if len(set(found)) == 1 else found


def _one(strides: Shape, why: str) -> int:
    if len(set(strides)) > 1:
        raise ValueError(f"{why}, and its stride is {text(strides)}; choose --upsample nearest or transposed")
    return strides[0]
