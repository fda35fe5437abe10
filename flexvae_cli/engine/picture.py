"""Any sample as a picture: an image as it is, a slice of a volume, the curve of a signal."""

from __future__ import annotations

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from flexvae_cli.engine.data.images import MODES, to_image

CURVE = (256, 128)  # width and height of the picture of a signal, in pixels
PAPER, AXIS = "#ffffff", "#d0d0d0"
INKS = ("#1a1a1a", "#b5482f", "#2f6db5", "#3a8f4d")  # of the channels, in turn


def picture(x: Tensor) -> Image.Image:
    """A sample (c, *space) in [-1, 1] as an image.

    Of an image with more than four channels, the first three are shown as red, green and blue; of a volume the slice in
    the middle of its first axis; of a signal the range from the least to the greatest number behind every column, from
    -1 at the bottom to 1 at the top, each channel in an ink of its own.
    """
    x = x.detach().to("cpu", torch.float32).nan_to_num()
    if x.dim() == 2:
        return curve(x)
    if x.dim() == 4:
        x = x[:, x.shape[1] // 2]
    return to_image(x if x.shape[0] in MODES else x[:3])


def curve(x: Tensor) -> Image.Image:
    """A signal (c, n) in [-1, 1] as its curve."""
    width, height = CURVE
    image = Image.new("RGB", CURVE, PAPER)
    draw = ImageDraw.Draw(image)
    draw.line([(0, height // 2), (width, height // 2)], fill=AXIS)
    edges = torch.linspace(0, x.shape[1], width + 1).long().tolist()
    for channel in reversed(range(x.shape[0])):
        rows = (1 - x[channel].clamp(-1, 1)) / 2 * (height - 1)
        before = rows[0].item()
        for column in range(width):
            start = min(edges[column], x.shape[1] - 1)
            part = rows[start : max(edges[column + 1], start + 1)]
            low, high = min(part.min().item(), before), max(part.max().item(), before)
            draw.line([(column, round(low)), (column, round(high))], fill=INKS[channel % len(INKS)])
            before = part[-1].item()
    return image
