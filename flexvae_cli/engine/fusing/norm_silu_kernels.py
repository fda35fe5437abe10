"""The Triton kernels of GroupNorm and SiLU as one function.

Positions are cut into tiles. Forward, one kernel finds mean and squared deviations of every channel in a program's
tiles, one joins them over the groups (Chan, Golub and LeVeque 1983), one writes the result; backward, one sums what
weights and groups need, one writes the gradient of x.

All sizes are in elements; a tile is (channels, positions), x (b, c, positions) with any strides, weights are (c,),
statistics (b, groups).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import triton
import triton.language as tl

jit: Callable[..., Any] = triton.jit


@jit
def _place(channel_count, tiles, wide: tl.constexpr, large: tl.constexpr):
    """The sample, the channels and the number of the tile that a program works on."""
    number = tl.program_id(0)
    if large:
        number = number.to(tl.int64)
    tile = number % tiles
    rest = number // tiles
    blocks = tl.cdiv(channel_count, wide)
    return rest // blocks, rest % blocks * wide + tl.arange(0, wide), tile


@jit
def _known(weight, bias, mean, inverse, sample, channels, inside, groups, per_group):
    """What a program needs of its channels, (channels, 1) each, in fp32."""
    of_group = sample * groups + channels // per_group
    a = tl.load(weight + channels, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(bias + channels, mask=inside, other=0.0).to(tl.float32)
    centre = tl.load(mean + of_group, mask=inside, other=0.0)
    scale = tl.load(inverse + of_group, mask=inside, other=0.0)
    return a[:, None], b[:, None], centre[:, None], scale[:, None]


@jit
def _slope(y):
    """Of SiLU."""
    gate = tl.sigmoid(y)
    return gate * (1.0 + y * (1.0 - gate))


@jit
def moments(
    x, means, squares, channel_count, positions, by_sample, by_channel, by_position, tiles,
    steps: tl.constexpr, wide: tl.constexpr, long: tl.constexpr, large: tl.constexpr,
):  # fmt: skip
    """Mean and sum of squared deviations of every channel in a program's tiles, joined step by step."""
    sample, channels, tile = _place(channel_count, tiles, wide, large)
    inside = channels < channel_count
    rows = x + sample * by_sample + channels[:, None] * by_channel
    mean = tl.zeros([wide], tl.float32)
    square = tl.zeros([wide], tl.float32)
    for step in range(steps):
        at = (tile * steps + step) * long + tl.arange(0, long)
        there = at < positions
        mask = inside[:, None] & there[None, :]
        value = tl.load(rows + at[None, :] * by_position, mask=mask, other=0.0).to(tl.float32)
        new = tl.sum(there.to(tl.float32))
        here = tl.sum(value, 1) / tl.maximum(new, 1.0)
        centred = tl.where(mask, value - here[:, None], 0.0)
        share = new / (step * long + new)  # tiles before one with positions are full
        delta = here - mean
        square += tl.sum(centred * centred, 1) + delta * delta * (step * long) * share
        mean += delta * share
    to = (sample * channel_count + channels) * tiles + tile
    tl.store(means + to, mean, mask=inside)
    tl.store(squares + to, square, mask=inside)


@jit
def _held(at, positions, tiles, deep, large: tl.constexpr):
    """How many positions a program had, by the place of its partial result."""
    tile = at % tiles
    if large:
        tile = tile.to(tl.int64)
    return tl.minimum(positions - tile * deep, deep).to(tl.float32)


@jit
def joined(
    means, squares, mean, inverse, eps, positions, per_group, tiles, deep, block: tl.constexpr, large: tl.constexpr
):
    """Mean and inverse deviation of a group, from those of its channels' tiles, `deep` positions each but the last."""
    number = tl.program_id(0)
    if large:
        number = number.to(tl.int64)
    parts = per_group * tiles
    first = number * parts
    whole = positions * 1.0 * per_group
    centre = 0.0
    for start in range(0, parts, block):
        at = start + tl.arange(0, block)
        share = _held(at, positions, tiles, deep, large) / whole
        centre += tl.sum(tl.load(means + first + at, mask=at < parts, other=0.0) * share)
    variance = 0.0
    for start in range(0, parts, block):
        at = start + tl.arange(0, block)
        share = _held(at, positions, tiles, deep, large) / whole
        inside = at < parts
        delta = tl.load(means + first + at, mask=inside, other=0.0) - centre
        square = tl.load(squares + first + at, mask=inside, other=0.0) / whole
        variance += tl.sum(tl.where(inside, square + delta * delta * share, 0.0))
    tl.store(mean + number, centre)
    tl.store(inverse + number, 1.0 / tl.sqrt(variance + eps))


@jit
def forward(
    x, out, weight, bias, mean, inverse, groups, per_group,
    channel_count, positions, by_sample, by_channel, by_position, tiles,
    steps: tl.constexpr, wide: tl.constexpr, long: tl.constexpr, large: tl.constexpr,
):  # fmt: skip
    """The result."""
    sample, channels, tile = _place(channel_count, tiles, wide, large)
    inside = channels < channel_count
    a, b, centre, scale = _known(weight, bias, mean, inverse, sample, channels, inside, groups, per_group)
    rows = sample * by_sample + channels[:, None] * by_channel
    for step in range(steps):
        at = (tile * steps + step) * long + tl.arange(0, long)
        mask = inside[:, None] & (at < positions)[None, :]
        places = rows + at[None, :] * by_position
        y = (tl.load(x + places, mask=mask, other=0.0).to(tl.float32) - centre) * scale * a + b
        tl.store(out + places, (y * tl.sigmoid(y)).to(out.dtype.element_ty), mask=mask)


@jit
def sums(
    x, gradient, sums, products, weight, bias, mean, inverse, groups, per_group,
    channel_count, positions, by_sample, by_channel, by_position, tiles,
    steps: tl.constexpr, wide: tl.constexpr, long: tl.constexpr, large: tl.constexpr,
):  # fmt: skip
    """Of every channel in a program's tiles, the sums of dy and of dy times the normalized x."""
    sample, channels, tile = _place(channel_count, tiles, wide, large)
    inside = channels < channel_count
    a, b, centre, scale = _known(weight, bias, mean, inverse, sample, channels, inside, groups, per_group)
    rows = sample * by_sample + channels[:, None] * by_channel
    plain = tl.zeros([wide], tl.float32)
    product = tl.zeros([wide], tl.float32)
    for step in range(steps):
        at = (tile * steps + step) * long + tl.arange(0, long)
        mask = inside[:, None] & (at < positions)[None, :]
        places = rows + at[None, :] * by_position
        normal = (tl.load(x + places, mask=mask, other=0.0).to(tl.float32) - centre) * scale
        dy = tl.load(gradient + places, mask=mask, other=0.0).to(tl.float32) * _slope(normal * a + b)
        plain += tl.sum(dy, 1)
        product += tl.sum(dy * normal, 1)
    to = (sample * channel_count + channels) * tiles + tile
    tl.store(sums + to, plain, mask=inside)
    tl.store(products + to, product, mask=inside)


@jit
def backward(
    x, gradient, dx, weight, bias, mean, inverse, mean_sum, mean_product, groups, per_group,
    channel_count, positions, by_sample, by_channel, by_position, tiles,
    steps: tl.constexpr, wide: tl.constexpr, long: tl.constexpr, large: tl.constexpr,
):  # fmt: skip
    """The gradient of x: what flows through the norm, less what the group's mean and deviation take of it."""
    sample, channels, tile = _place(channel_count, tiles, wide, large)
    inside = channels < channel_count
    a, b, centre, scale = _known(weight, bias, mean, inverse, sample, channels, inside, groups, per_group)
    of_group = sample * groups + channels // per_group
    constant = tl.load(mean_sum + of_group, mask=inside, other=0.0)[:, None]
    slope = tl.load(mean_product + of_group, mask=inside, other=0.0)[:, None]
    rows = sample * by_sample + channels[:, None] * by_channel
    for step in range(steps):
        at = (tile * steps + step) * long + tl.arange(0, long)
        mask = inside[:, None] & (at < positions)[None, :]
        places = rows + at[None, :] * by_position
        normal = (tl.load(x + places, mask=mask, other=0.0).to(tl.float32) - centre) * scale
        dy = tl.load(gradient + places, mask=mask, other=0.0).to(tl.float32) * _slope(normal * a + b)
        found = scale * (a * dy - constant - normal * slope)
        tl.store(dx + places, found.to(dx.dtype.element_ty), mask=mask)
