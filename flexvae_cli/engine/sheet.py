"""Pictures of pictures: originals beside their reconstructions, a grid of samples, a strip of frames, labelled rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from statistics import median

from PIL import Image, ImageDraw, ImageFont, ImageOps

LONGEST = 512  # pixels of a tile's longer side; larger images are scaled down
SMALL = 160  # small ones are enlarged, pixel by pixel, up to about this; no column is narrower
NARROW, WIDE, MARGIN = 6, 28, 28  # gaps within a pair, between pairs, around all
PROPORTION = 1.5  # width to height that a sheet comes near to
HOLES = 4.0  # how much an empty place weighs against the proportion
PAPER, INK, PALE = "#ffffff", "#1a1a1a", "#6b6b6b"
HEAD_SIZE, CAPTION_SIZE = 20, 15  # of the type, in pixels
HEAD, CAPTION = 34, 38  # what a line of it takes, in pixels


@dataclass(frozen=True, slots=True)
class Tile:
    """An image on a sheet, and what stands below it, left and right."""

    image: Image.Image
    left: str = ""
    right: str = ""


def tile(image: Image.Image, left: str = "", right: str = "", longest: int = LONGEST) -> Tile:
    """A tile of an image of any size and mode: transparency on white, at most `longest` pixels along a side."""
    if image.mode in ("LA", "RGBA"):
        image = Image.alpha_composite(Image.new("RGBA", image.size, PAPER), image.convert("RGBA"))
    image = image.convert("RGB")
    longer = max(image.size)
    small = min(SMALL, longest)
    if longer > longest:
        width, height = (max(1, round(side * longest / longer)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    elif longer <= small // 2:
        factor = small // longer
        image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    return Tile(image, left, right)


def pairs(tiles: Sequence[tuple[Tile, Tile]], heads: tuple[str, str] = ("original", "reconstruction")) -> Image.Image:
    """Two tiles side by side, a head above each column, as many pairs in a row as make the sheet well proportioned."""
    columns = _columns([first for first, _ in tiles], 2)
    return _sheet([tile for pair in tiles for tile in pair], 2 * columns, heads)


def grid(tiles: Sequence[Tile]) -> Image.Image:
    """Tiles in rows, well proportioned."""
    return _sheet(tiles, _columns(tiles, 1))


def strip(tiles: Sequence[Tile], most: int = 8) -> Image.Image:
    """Tiles in one row, or in several of at most `most` each, as even as can be."""
    rows = math.ceil(len(tiles) / most)
    return _sheet(tiles, math.ceil(len(tiles) / rows))


def rows(labelled: Sequence[tuple[str, Sequence[Tile]]]) -> Image.Image:
    """Rows of tiles that are all of one size, below each other, each under its label; the type grows with the tiles."""
    width, height = labelled[0][1][0].image.size
    size = max(CAPTION_SIZE, min(width, height) // 11)
    line, margin = round(1.5 * size), size
    words = max(math.ceil(_font(size).getlength(text)) for text, _ in labelled)
    most = max(len(tiles) for _, tiles in labelled)
    captions = [line * any(t.left or t.right for t in tiles) for _, tiles in labelled]
    tall = sum(captions) + len(labelled) * (line + height + margin)
    wide = max(most * (width + NARROW) - NARROW, words)
    sheet = Image.new("RGB", (wide + 2 * margin, tall + margin), PAPER)
    draw, top = ImageDraw.Draw(sheet), margin
    for (text, tiles), caption in zip(labelled, captions, strict=True):
        draw.text((margin, top), text, fill=INK, font=_font(size), anchor="la")
        for index, each in enumerate(tiles):
            left = margin + index * (width + NARROW)
            sheet.paste(each.image, (left, top + line))
            _caption(draw, each, left, top + line + height + size // 4, width, size)
        top += line + height + caption + margin
    return sheet


def _columns(tiles: Sequence[Tile], per_unit: int) -> int:
    """How many units of `per_unit` tiles go in a row: near to `PROPORTION`, with few empty places at the end."""
    width, height = _cell(tiles)

    def cost(columns: int) -> float:
        rows = math.ceil(len(tiles) / columns)
        shape = columns * (per_unit * width + WIDE) / (rows * (height + WIDE))
        return abs(math.log(shape / PROPORTION)) + HOLES * (rows * columns - len(tiles)) / len(tiles)

    return min(range(1, len(tiles) + 1), key=cost)


def _cell(tiles: Sequence[Tile]) -> tuple[int, int]:
    """Width and height of the box that every tile is fitted into: as large as the largest, of the usual proportion."""
    width, height = max(t.image.width for t in tiles), max(t.image.height for t in tiles)
    proportion = median(t.image.width / t.image.height for t in tiles)
    # a few portraits among landscapes are shrunk rather than given all rows their height
    return max(SMALL, min(width, math.ceil(height * proportion))), min(height, math.ceil(width / proportion))


def _sheet(tiles: Sequence[Tile], columns: int, heads: tuple[str, ...] = ()) -> Image.Image:
    """Tiles in rows of `columns`; with heads, every `len(heads)` tiles of a row stand close together."""
    width, height = _cell(tiles)
    group, between = (len(heads), WIDE) if heads else (1, NARROW)
    captions = any(t.left or t.right for t in tiles)
    lefts = [MARGIN + c * width + (c - c // group) * NARROW + c // group * between for c in range(columns)]
    first = MARGIN + (HEAD if heads else 0)
    pitch = height + (CAPTION if captions else NARROW)
    bottom = first + math.ceil(len(tiles) / columns) * pitch - NARROW
    sheet = Image.new("RGB", (lefts[-1] + width + MARGIN, bottom + MARGIN), PAPER)
    draw = ImageDraw.Draw(sheet)
    for column in range(columns if heads else 0):
        draw.text((lefts[column], MARGIN), heads[column % group], fill=INK, font=_font(HEAD_SIZE), anchor="lt")
    for index, each in enumerate(tiles):
        left, top = lefts[index % columns], first + index // columns * pitch
        image = each.image if _fits(each.image, width, height) else ImageOps.contain(each.image, (width, height))
        sheet.paste(image, (left + (width - image.width) // 2, top + (height - image.height) // 2))
        _caption(draw, each, left, top + height + 8, width)
    return sheet


def _fits(image: Image.Image, width: int, height: int) -> bool:
    return image.width <= width and image.height <= height


def _caption(draw: ImageDraw.ImageDraw, tile: Tile, left: int, top: int, width: int, size: int = CAPTION_SIZE) -> None:
    """What stands below a tile; the left part is cut in the middle where the two do not fit."""
    font = _font(size)
    right = left + width
    draw.text((right, top), tile.right, fill=INK, font=font, anchor="ra")
    room = width - math.ceil(draw.textlength(tile.right, font=font)) - size * bool(tile.right)
    text = shown = "".join(c if c.isprintable() else "?" for c in tile.left)
    kept = len(text)
    while kept > 1 and draw.textlength(shown, font=font) > room:
        kept -= 1
        shown = f"{text[: kept // 2]}\N{HORIZONTAL ELLIPSIS}{text[len(text) - (kept - kept // 2) :]}"
    if kept > 1:
        draw.text((left, top), shown, fill=PALE, font=font, anchor="la")


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
