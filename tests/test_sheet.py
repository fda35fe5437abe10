from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from flexvae_cli.engine.sheet import LONGEST, grid, pairs, strip, tile

RED, BLUE = (200, 30, 30), (30, 30, 200)


def flat(width: int, height: int, colour: tuple[int, ...], mode: str = "RGB") -> Image.Image:
    return Image.new(mode, (width, height), colour)


def pair(width: int, height: int):
    return tile(flat(width, height, RED), "name.jpg"), tile(flat(width, height, BLUE), right="31.2 dB")


def mask(image: Image.Image, colour: tuple[int, ...]) -> np.ndarray:
    """(h, w): where the image has that colour."""
    return (np.asarray(image) == colour).all(axis=2)


def places(image: Image.Image, colour: tuple[int, ...]) -> list[int]:
    """The columns where runs of a colour begin, in the row that has most of them."""
    there = mask(image, colour)
    begins = there & ~np.roll(there, 1, axis=1)
    return np.flatnonzero(begins[begins.sum(axis=1).argmax()]).tolist()


@pytest.mark.parametrize(("width", "height"), [(256, 128), (100, 150), (128, 128)])
@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_every_pair_is_whole_on_the_sheet(width, height, count):
    sheet = pairs([pair(width, height) for _ in range(count)])
    assert mask(sheet, RED).sum() == mask(sheet, BLUE).sum() == count * width * height


def test_an_original_stands_left_of_its_reconstruction():
    sheet = pairs([pair(256, 128) for _ in range(8)])
    red, blue = places(sheet, RED), places(sheet, BLUE)
    assert len(red) == len(blue) == 2
    assert all(b - r == 256 + 6 for r, b in zip(red, blue, strict=True))


@pytest.mark.parametrize(("width", "height"), [(256, 128), (128, 256), (200, 200)])
def test_eight_pairs_make_a_sheet_of_pleasing_proportions(width, height):
    sheet = pairs([pair(width, height) for _ in range(8)])
    assert 0.8 < sheet.width / sheet.height < 2.8


def test_images_of_all_sizes_and_modes_fit():
    tiles = [
        tile(flat(4000, 3000, RED)),
        tile(flat(3, 2, (9,), "L")),
        tile(flat(1, 900, RED)),
        tile(flat(900, 1, RED)),
        tile(flat(40, 40, (*RED, 0), "RGBA")),
        tile(flat(40, 40, (9, 0), "LA"), "\N{SNOWMAN}\x00" + "x" * 500, "99.9 dB"),
    ]
    assert all(max(t.image.size) <= LONGEST and t.image.mode == "RGB" for t in tiles)
    assert tiles[1].image.size == (159, 106)
    assert tiles[4].image.getpixel((0, 0)) == (255, 255, 255)
    sheet = grid(tiles)
    assert sheet.mode == "RGB"
    assert max(sheet.size) < 8 * LONGEST


def test_a_caption_never_runs_into_its_neighbour():
    long = tile(flat(160, 160, RED), "a-very-long-name-of-a-picture-that-nobody-can-read.jpg", "31.2 dB")
    one, two = grid([long]), grid([tile(flat(160, 160, RED), "", "31.2 dB")])
    assert one.size == two.size
    box = (one.width - 28 - 60, 0, one.width, one.height)  # where the right part stands
    assert one.crop(box).tobytes() == two.crop(box).tobytes()
    margin = (0, 0, 27, one.height)
    assert one.crop(margin).getcolors() == [(27 * one.height, (255, 255, 255))]


def test_a_strip_is_one_row_or_even_rows():
    tiles = [tile(flat(100, 100, RED)) for _ in range(9)]
    assert len(places(strip(tiles[:8]), RED)) == 8
    assert len(places(strip(tiles), RED)) == 5
