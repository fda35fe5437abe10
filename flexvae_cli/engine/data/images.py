"""Image file -> array -> tensor -> image."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageColor

from flexvae_cli.api.readers import About
from flexvae_cli.engine.data.colour import is_srgb, to_srgb
from flexvae_cli.engine.data.deep_png import is_deep, read_deep_png
from flexvae_cli.engine.data.grey import depth_of, grey_plane, require_unsigned, with_channels
from flexvae_cli.engine.data.opening import (
    TURNS,
    BadFile,
    check_pixels,
    check_png,
    opened,
    orientation,
    upright_size,
)
from flexvae_cli.engine.data.pam import PamHeader, pam_header, read_pam
from flexvae_cli.engine.data.readers.span import UNSTATED, Span
from flexvae_cli.errors import UsageError

MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}  # channels -> Pillow's mode
GREY_OF_RGB = np.array([[0.299], [0.587], [0.114]], np.float32)  # as Pillow weighs them, ITU-R 601


def check_channels(channels: int, where: str = "data.input") -> None:
    """Raise `UsageError` where images cannot have so many channels."""
    if channels not in MODES:
        raise UsageError(
            f"an image has 1 (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGB, alpha) channels, not {channels}", where=where
        )


def require_channels(path: Path, channels: int) -> None:
    """Raise `BadFile` where a file cannot be made to have so many channels: more than 4 only a PAM can have."""
    pam = pam_header(path)
    if pam is not None:
        _require_depth(path, pam, channels)
    elif channels not in MODES:
        raise BadFile(path, f"has {max(MODES)} channels at most, since it is no PAM; wanted are {channels}")


@dataclass(frozen=True, slots=True)
class Picture:
    """An image as it was read.

    Attributes:
        pixels: (h, w, channels) of uint8, of uint16 (0 to 65535), or of float32 in [0, 1].
        about: what it takes to write a file of the same depth, or of the same numbers; see `api.readers.Reading`.
    """

    pixels: np.ndarray
    about: About = field(default_factory=dict)


def read_image(path: str | Path, **how: Any) -> np.ndarray:
    """The pixels alone of `read_picture`, which tells what `how` can be."""
    return read_picture(path, **how).pixels


def read_picture(
    path: str | Path,
    *,
    channels: int,
    background: str = "#ffffff",
    exif: bool = True,
    max_pixels: int = 64_000_000,
    cover: tuple[int, int] | None = None,
    draft: bool = True,
    span: Span = UNSTATED,
) -> Picture:
    """Read an image of any mode: JPEG, PNG, WebP, BMP, TIFF, GIF, PPM, AVIF or PAM, by its content, not its name.

    Of an animation or a multi-page file the first frame is read. Grey images of 12 or 16 bits and PNGs of 16 bits per
    channel keep 16 bits; floats and whole numbers of 32 bits become floats. A PNG with several channels comes with 8
    bits where it is interlaced or has a colour profile other than sRGB, whose conversion works on 8; so does any other
    colour image.

    Args:
        path: the file.
        channels: 1 (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGB, alpha) of the result; any other number of a PAM that has
            so many.
        background: `#rrggbb`, the colour under transparent pixels where the result has no alpha.
        exif: turn photographs upright.
        max_pixels: a larger image is refused from its header.
        cover: scale the image until it just covers this (height, width).
        draft: decode a JPEG that is to be scaled down at a half, a quarter or an eighth of its size where that is still
            enough, which is several times faster and differs little.
        span: the range of floats and whole numbers of 32 bits, which state none themselves; see `grey_plane`.

    Raises:
        BadFile: the file cannot be read; no other exception, whatever the file holds.
        UsageError: `channels` is not 1 to 4, and the file is no PAM.
    """
    path = Path(path) if isinstance(path, str) else path  # one of a member is to stay one
    pam = pam_header(path)
    if pam is not None:
        return _picture(_of_pam(path, pam, channels, background, max_pixels, cover))
    check_channels(channels)
    with opened(path, max_pixels) as image:
        header = check_png(path) if image.format == "PNG" else b""
        turn = orientation(image, exif=exif)
        size = upright_size(image, turn)
        if cover is not None:
            size = covering(size, cover)
            check_pixels(path, size[0] * size[1], max_pixels, has="enlarged to the input has")
            if draft:
                image.draft(None, size if turn >= 5 else size[::-1])  # (width, height); only a JPEG heeds it
        if header and is_deep(header) and is_srgb(image):
            return _picture(_deep_colour(path, channels, background, turn, size))
        image.load()
        require_unsigned(path, image)
        depth = depth_of(image)
        if depth is np.uint8:
            pixels = np.array(_placed(_flat(image, channels, background), turn, size))  # (h, w) or (h, w, c)
            return Picture(pixels.reshape(*size, channels))
        plane, about = grey_plane(path, image, span)
        return _picture(with_channels(np.array(_placed(plane, turn, size)), channels, depth), about)


def _picture(pixels: np.ndarray, about: About | None = None) -> Picture:
    return Picture(pixels, about or ({"bits": 16} if pixels.dtype == np.uint16 else {}))


def pillow_array(image: Image.Image, channels: int, background: str = "#ffffff", *, exif: bool = True) -> np.ndarray:
    """An image that Pillow has opened already as an array (h, w, channels) of uint8; see `read_image`."""
    check_channels(channels, where="")
    turn = orientation(image, exif=exif)
    plane = _flat(image, channels, background)
    plane = plane.transpose(TURNS[turn]) if turn in TURNS else plane
    return np.array(plane).reshape(plane.height, plane.width, channels)


def covering(size: tuple[int, int], target: tuple[int, int]) -> tuple[int, int]:
    """The (height, width) of an image scaled, with its proportions, so that it just covers `target`."""
    (height, width), (rows, columns) = size, target
    if rows * width >= columns * height:  # the height decides
        return rows, max(columns, round(width * rows / height))
    return max(rows, round(height * columns / width)), columns


def to_tensor(array: np.ndarray) -> torch.Tensor:
    """An image array (h, w, c) of uint8, uint16, or float32 in [0, 1] -> float32 (c, h, w) in [-1, 1]."""
    white = 1.0 if array.dtype == np.float32 else float(np.iinfo(array.dtype).max)
    planes = np.ascontiguousarray(array.transpose(2, 0, 1), dtype=np.float32)
    return torch.from_numpy(planes).div(white).mul_(2).sub_(1)


def to_image(tensor: torch.Tensor) -> Image.Image:
    """A tensor (c, h, w) in [-1, 1] with 1 to 4 channels -> an 8-bit image; values outside are clamped."""
    check_channels(tensor.shape[0], where="")
    levels = tensor.detach().to("cpu", torch.float32).add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)
    array = levels.permute(1, 2, 0).numpy()  # (h, w, c)
    return Image.fromarray(np.ascontiguousarray(array[..., 0] if array.shape[2] == 1 else array))


def _flat(image: Image.Image, channels: int, background: str) -> Image.Image:
    """An image of 8 bits or less in the mode of `channels`: no palette, no CMYK, no alpha unless asked for."""
    mode = MODES[channels]
    transparent = image.has_transparency_data
    if transparent or image.mode == "P":
        image = image.convert("RGBA" if transparent else "RGB")
    image = to_srgb(image)
    if transparent and channels in (1, 3):
        image = Image.alpha_composite(Image.new("RGBA", image.size, background), image)
    return image if image.mode == mode else image.convert(mode)


def _placed(plane: Image.Image, turn: int, size: tuple[int, int]) -> Image.Image:
    """An image turned upright from orientation `turn`, and scaled where it is not of `size`, (height, width)."""
    if turn in TURNS:
        plane = plane.transpose(TURNS[turn])
    if plane.size != size[::-1]:
        plane = plane.resize(size[::-1], Image.Resampling.LANCZOS, reducing_gap=2.0)
    return plane


def _deep_colour(path: Path, channels: int, background: str, turn: int, size: tuple[int, int]) -> np.ndarray:
    """A PNG of 16 bits and several channels as (*size, channels) of uint16, in the same steps as an image of 8."""
    colour, alpha = (part.astype(np.float32) / 65535 for part in read_deep_png(path))  # (h, w, 1 or 3), (h, w, 1)
    return _composed(colour, alpha, channels, background, turn, size)


def _of_pam(
    path: Path, pam: PamHeader, channels: int, background: str, max_pixels: int, cover: tuple[int, int] | None
) -> np.ndarray:
    """A PAM as (*size, channels) of the depth that it has: by its meaning where it is a picture, else as it is."""
    size = (pam.height, pam.width)
    check_pixels(path, size[0] * size[1], max_pixels)
    if cover is not None:
        size = covering(size, cover)
        check_pixels(path, size[0] * size[1], max_pixels, has="enlarged to the input has")
    meaningful = _require_depth(path, pam, channels)
    pixels = read_pam(path, pam)
    if pam.depth == channels and size == pixels.shape[:2]:
        return pixels
    unit = pixels.astype(np.float32) / np.iinfo(pixels.dtype).max
    if meaningful:
        alpha = unit[..., -1:] if pam.has_alpha else np.ones_like(unit[..., :1])
        colour = unit[..., :-1] if pam.has_alpha else unit
        deep = _composed(colour, alpha, channels, background, 1, size)
    else:
        bands = [np.array(_placed(Image.fromarray(band), 1, size)) for band in np.moveaxis(unit, 2, 0)]
        deep = np.rint(np.stack(bands, axis=2).clip(0, 1) * 65535).astype(np.uint16)
    return deep if pixels.dtype == np.uint16 else np.rint(deep / 257).astype(np.uint8)


def _require_depth(path: Path, pam: PamHeader, channels: int) -> bool:
    """Whether a PAM is a picture, whose channels can be converted; any other must have as many as are wanted."""
    meaningful = channels in MODES and pam.depth in MODES and (pam.depth in (1, 3) or pam.has_alpha)
    if not meaningful and pam.depth != channels:
        raise BadFile(path, f"has {pam.depth} channels; wanted are {channels}")
    return meaningful


def _composed(
    colour: np.ndarray, alpha: np.ndarray, channels: int, background: str, turn: int, size: tuple[int, int]
) -> np.ndarray:
    """Colour (h, w, 1 or 3) and alpha (h, w, 1) in [0, 1], turned and scaled, as (*size, channels) of uint16."""
    if channels in (1, 3):
        behind = np.array(ImageColor.getrgb(background), np.float32) / 255
        colour, alpha = colour * alpha + behind * (1 - alpha), np.ones_like(alpha)
    if channels < 3 and colour.shape[2] == 3:
        colour = colour @ GREY_OF_RGB
    scaled = sorted(size) != sorted(colour.shape[:2])
    bands = np.concatenate([colour * alpha if scaled else colour, alpha], axis=2)  # the unseen must not bleed
    placed = [np.array(_placed(Image.fromarray(band), turn, size)) for band in np.moveaxis(bands, 2, 0)]
    bands = np.stack(placed, axis=2)
    colour, alpha = bands[..., :-1], bands[..., -1:]
    if scaled:
        colour = colour / np.where(alpha > 0, alpha, 1)
    parts = [colour] * (3 if channels > colour.shape[2] + 1 else 1) + [alpha] * (channels in (2, 4))
    return np.rint(np.concatenate(parts, axis=2).clip(0, 1) * 65535).astype(np.uint16)
