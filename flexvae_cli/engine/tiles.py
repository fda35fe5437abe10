"""Big inputs in overlapping tiles, each run by itself: quick, and near the result without tiles, but not the same.

A norm or an attention that looks at all positions sees a tile alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import product

import torch
from torch import Tensor

from flexvae_cli.api import Encoded, Reach, Shape
from flexvae_cli.api.trace import text
from flexvae_cli.engine.model import Model
from flexvae_cli.engine.vae import at_least_fp32
from flexvae_cli.errors import UsageError
from flexvae_cli.tracing import trace


class TiledModel(Model):
    """A model that is run in tiles, blended linearly where they overlap: by the receptive field, or half of a tile.

    Args:
        model: the model; its weights are shared.
        tile: side of a tile, in positions of samples; rounded up to what the net can take.

    Attributes:
        tile: as it was asked for.
        side: (*space) of a tile as it is run.

    Raises:
        UsageError: the net's tiles do not fit together, or are too small to overlap.
    """

    def __init__(self, model: Model, tile: int) -> None:
        super().__init__(model.vae, model.net, model.description, model.path, model.weights_hash)
        self.tile = tile
        net = self.net
        self.side = net.fitting((tile,) * (len(net.shape) - 1))
        self._latents = net.traces((net.shape[0], *self.side), [])[1].gives[1:]
        ends = net.encoder.expanded(), net.latent_shape, net.decoder.expanded()
        self._into = trace(ends[0], net.shape, [], net.fallback).reach
        self._back = trace(ends[2], ends[1], [], net.fallback).reach
        if any(n != s * m for n, s, m in zip(self.side, self._into.stride, self._latents, strict=True)):
            hint = "use --exact instead"
            raise UsageError("this net is not of one scale, so that its tiles do not fit together", "--tile", hint=hint)
        least = tuple(2 * stride.numerator for stride in self._into.stride)  # half of a tile begins with a latent
        if any(n < wanted for n, wanted in zip(self.side, least, strict=True)):
            what = f"tiles of {text(self.side)} are too small to overlap by half of one at most"
            raise UsageError(what, where="--tile", hint=f"use --tile {max(net.fitting(least))} or more")

    @property
    def overlap(self) -> dict[str, Shape]:
        """Positions of samples that two neighbours share in the encoder and in the decoder, per axis."""
        each = zip(_overlap(self._back, self._latents), self._into.stride, strict=True)
        back = tuple(int(n * stride) for n, stride in each)
        return {"encoder": _overlap(self._into, self.side), "decoder": back}

    @torch.inference_mode()
    def encoded(self, x: Tensor) -> Encoded:
        """As `Model.encoded`; what is blended is the input of the bottleneck."""
        self._require_channels(x, self.net.shape[0], "samples")
        h = at_least_fp32(blended(self.vae.encoder, self.padded(x), self.side, self._into))
        with torch.autocast(h.device.type, enabled=False):
            encoded: Encoded = self.vae.bottleneck(h)
        return encoded

    @torch.inference_mode()
    def decode(self, z: Tensor, size: Shape | None = None) -> Tensor:
        """As `Model.decode`."""
        self._require_channels(z, self.net.latent_shape[0], "latents")
        output = at_least_fp32(blended(self.vae.decoder, z, self._latents, self._back))
        x = self.vae.to_samples(output).clamp(-1.0, 1.0)
        return x if size is None else x[(slice(None), slice(None), *(slice(n) for n in size))]


def blended(net: Callable[[Tensor], Tensor], x: Tensor, tile: Sequence[int], reach: Reach) -> Tensor:
    """What a net makes of x, (b, c, *space), tile by tile.

    Args:
        net: the net.
        x: its input.
        tile: positions of a tile, per axis, which the net takes.
        reach: of an output of the net; says how far tiles overlap.
    """
    space = tuple(x.shape[2:])
    overlap = _overlap(reach, tile)
    starts = [_starts(n, size, over) for n, size, over in zip(space, tile, overlap, strict=True)]
    if all(len(each) == 1 for each in starts):
        return net(x)
    out = total = torch.empty(0)
    for start in product(*starts):
        ends = [min(first + size, n) for first, size, n in zip(start, tile, space, strict=True)]
        inside = (slice(None), slice(None), *(slice(*each) for each in zip(start, ends, strict=True)))
        y = at_least_fp32(net(x[inside]))
        if not out.numel():
            whole = [int(n / stride) for n, stride in zip(space, reach.stride, strict=True)]
            out, total = y.new_zeros(*y.shape[:2], *whole), y.new_zeros(whole)
        first = [int(n / stride) for n, stride in zip(start, reach.stride, strict=True)]
        here = tuple(slice(n, n + m) for n, m in zip(first, y.shape[2:], strict=True))
        of_all = (slice(None), slice(None), *here)
        over = [max(1, int(n / stride)) for n, stride in zip(overlap, reach.stride, strict=True)]
        weights = _weights(y, over, [n > 0 for n in start], [end < n for end, n in zip(ends, space, strict=True)])
        out[of_all] += y * weights
        total[here] += weights
    return out / total


def _overlap(reach: Reach, tile: Sequence[int]) -> Shape:
    """Positions that neighbouring tiles share: the receptive field, at most half of a tile."""
    return tuple(
        min(_up(field, stride), size // 2 // stride.numerator * stride.numerator)
        for field, stride, size in zip(reach.field, reach.stride, tile, strict=True)
    )


def _up(n: int, stride: Fraction) -> int:
    """`n`, rounded up to where outputs begin."""
    return math.ceil(n / Fraction(stride.numerator)) * stride.numerator


def _starts(n: int, tile: int, overlap: int) -> list[int]:
    """Where tiles begin along an axis of n positions; the last one ends where the axis does."""
    if n <= tile:
        return [0]
    return [*range(0, n - tile, max(1, tile - overlap)), n - tile]


def _weights(y: Tensor, overlap: Sequence[int], before: Sequence[bool], behind: Sequence[bool]) -> Tensor:
    """What an output of a tile counts: less towards a border that it shares with a neighbour."""
    weights = y.new_ones(())
    for axis, (over, left, right) in enumerate(zip(overlap, before, behind, strict=True)):
        n = y.shape[2 + axis]
        rising = (torch.arange(1, n + 1, device=y.device) / (over + 1)).clamp(max=1)
        along = (rising if left else torch.ones_like(rising)) * (rising.flip(0) if right else 1)
        weights = weights[..., None] * along.to(y.dtype)
    return weights
