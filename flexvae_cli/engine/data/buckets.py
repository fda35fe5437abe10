"""Which image is trained on at which of the shapes of aspect-ratio buckets; see `flexvae_cli.buckets`."""

from __future__ import annotations

import math
from collections.abc import Sequence

from flexvae_cli.api.trace import Shape
from flexvae_cli.engine.data.opening import BadFile
from flexvae_cli.engine.data.preparation import Preparation
from flexvae_cli.engine.data.sources import Item, Size, sizes_of, too_small


def bucket_of(size: Size, shapes: Sequence[Shape]) -> int:
    """The number of the shape whose sides stand to each other most nearly as those of an image; of equals the first."""
    ratio = size[1] / size[0]
    return min(range(len(shapes)), key=lambda number: abs(math.log(ratio * shapes[number][1] / shapes[number][2])))


def usable(
    items: Sequence[Item], shapes: Sequence[Shape], preparations: Sequence[Preparation]
) -> tuple[dict[Item, int], list[BadFile]]:
    """Look at the header of every image; each need be as large as the shape of its own bucket alone.

    Args:
        items: the images of a source.
        shapes: of samples, (c, h, w), bucket by bucket.
        preparations: at the largest size that a bucket has in the course of the run.

    Returns:
        The bucket of each image that can be used, and what is wrong with the others: too small, too large, not
        readable. A file whose header is sound may still turn out to be damaged when it is decoded.
    """
    how = preparations[0]
    buckets, bad = dict[Item, int](), list[BadFile]()
    for item, size in zip(items, sizes_of(items, max_pixels=how.max_pixels, exif=how.exif), strict=True):
        bucket = 0 if isinstance(size, BadFile) else bucket_of(size, shapes)
        fault = too_small(item.path, size, preparations[bucket].least)
        if fault is None:
            buckets[item] = bucket
        else:
            bad.append(fault)
    return buckets, bad
