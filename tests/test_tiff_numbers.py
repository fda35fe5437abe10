"""TIFFs that Pillow reads wrong or not at all give the numbers that tifffile reads, or it is told what they are."""

from __future__ import annotations

import contextlib
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flexvae_cli.api.readers import BadFile
from flexvae_cli.engine.data.images import read_image, read_picture
from flexvae_cli.engine.data.opening import image_size
from flexvae_cli.engine.data.readers.span import Span
from flexvae_cli.engine.data.tiff import tiff_bytes

tifffile = pytest.importorskip("tifffile")
RANDOM = np.random.default_rng(0)
DEEP = RANDOM.integers(0, 65536, (20, 12, 4)).astype(np.uint16)


def written(path: Path, numbers: np.ndarray, planes: bool = False, **how: Any) -> Path:
    """A TIFF of (h, w, c), with the channels one behind the other or interleaved."""
    stored = np.moveaxis(numbers, 2, 0) if planes else numbers
    tifffile.imwrite(path, stored, planarconfig="separate" if planes else "contig", **how)
    there = tifffile.imread(path)
    assert np.array_equal(np.moveaxis(there, 0, 2) if planes else there, numbers)
    return path


@pytest.mark.parametrize(
    ("order", "rows", "big", "channels"), [*itertools.product("<>", (None, 7), (False, True), (3, 4))]
)
def test_planes_of_16_bits_are_read_as_interleaved_ones(
    tmp_path: Path, order: str, rows: int | None, big: bool, channels: int
) -> None:
    how: dict[str, Any] = {"photometric": "rgb", "byteorder": order, "rowsperstrip": rows, "bigtiff": big}
    if channels == 4:
        how["extrasamples"] = ["unassalpha"]
    numbers = DEEP[..., :channels]
    path = written(tmp_path / "planes.tif", numbers, planes=True, **how)
    assert image_size(path) == (20, 12)
    found = read_image(path, channels=channels)
    assert np.array_equal(found, numbers >> 8)
    how["bigtiff"] = False
    assert np.array_equal(found, read_image(written(tmp_path / "mixed.tif", numbers, **how), channels=channels))
    for other in (1, 3):
        assert np.array_equal(
            read_image(path, channels=other, cover=(10, 9)),
            read_image(tmp_path / "mixed.tif", channels=other, cover=(10, 9)),
        )


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("extra", ["unspecified", "assocalpha"])
def test_a_fourth_plane_is_what_it_says(tmp_path: Path, dtype: type[np.generic], extra: str) -> None:
    numbers = DEEP // 2
    numbers[..., 3] += 30_000
    numbers = (numbers >> 8 if dtype is np.uint8 else numbers).astype(dtype)
    how: dict[str, Any] = {"photometric": "rgb", "extrasamples": [extra]}
    path = written(tmp_path / "planes.tif", numbers, planes=True, **how)
    same = written(tmp_path / "mixed.tif", numbers, **how)
    for channels in (3, 4):
        assert np.array_equal(read_image(path, channels=channels), read_image(same, channels=channels))


def test_grey_of_16_bits_with_opacity(tmp_path: Path) -> None:
    numbers = DEEP[..., :2]
    for planes in (False, True):
        how = {"photometric": "minisblack", "extrasamples": ["unassalpha"]}
        path = written(tmp_path / "la.tif", numbers, planes=planes, **how)
        assert np.array_equal(read_image(path, channels=2), numbers >> 8)
    assert read_image(path, channels=1, background="#000000").max() < 255


def test_a_turned_one_is_upright_and_small_enough(tmp_path: Path) -> None:
    tags = [(274, "H", 1, 6, True)]
    how = {"photometric": "rgb", "extratags": tags}
    path = written(tmp_path / "planes.tif", DEEP[..., :3], planes=True, **how)
    assert image_size(path) == (12, 20)
    assert np.array_equal(read_image(path, channels=3), np.rot90(DEEP[..., :3] >> 8, -1))
    for bounded in (image_size, lambda path, max_pixels: read_image(path, channels=3, max_pixels=max_pixels)):
        with pytest.raises(BadFile, match="megapixels"):
            bounded(path, max_pixels=239)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_floats_of_16_and_64_bits_are_grey(tmp_path: Path, dtype: type[np.generic], order: str) -> None:
    numbers = RANDOM.random((20, 12)).astype(dtype)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, numbers, photometric="minisblack", byteorder=order)
    assert image_size(path) == (20, 12)
    assert np.array_equal(read_image(path, channels=1)[..., 0], numbers.astype(np.float32))
    tifffile.imwrite(path, numbers * 100, photometric="minisblack", byteorder=order)
    with pytest.raises(BadFile, match="whose range is not known"):
        read_image(path, channels=1)
    picture = read_picture(path, channels=1, span=Span("type", 0, 100))
    np.testing.assert_allclose(picture.pixels[..., 0], (numbers * 100).astype(np.float64) / 100, rtol=1e-6)
    assert picture.about["dtype"] == "<f4"


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_what_is_not_finite_is_called_so(tmp_path: Path, dtype: type[np.generic]) -> None:
    numbers = np.zeros((4, 4), dtype)
    numbers[1, 1:3] = np.nan, np.inf
    tifffile.imwrite(tmp_path / "nan.tif", numbers, photometric="minisblack")
    with pytest.raises(BadFile, match=r"holds 2 numbers that are not finite \(NaN or infinity\)"):
        read_image(tmp_path / "nan.tif", channels=1)


NPY, PNG = "store its numbers as .npy", "save it as PNG"
TILED = {"tile": (16, 16)}


@pytest.mark.parametrize(
    ("numbers", "how", "said"),
    [
        (np.zeros((9, 8, 3), np.float32), {"photometric": "rgb"}, f"3 channels of float32, a kind .*; {NPY}"),
        (np.zeros((9, 8, 5), np.uint8), {"planarconfig": "contig"}, f"5 channels of uint8, a kind .*; {NPY}"),
        (np.zeros((9, 8), np.float64), {"compression": "zlib"}, f"1 channel of float64, compressed, .*; {NPY}"),
        (np.zeros((9, 8), np.int64), {}, f"1 channel of int64, a kind .*; {NPY}"),
        (
            np.zeros((3, 32, 16), np.uint16),
            {"photometric": "rgb", "planarconfig": "separate", **TILED},
            f"3 channels of uint16, plane by plane, in tiles, a kind .*; {PNG}",
        ),
    ],
)
def test_a_sound_file_of_another_kind_is_not_called_damaged(
    tmp_path: Path, numbers: np.ndarray, how: dict[str, Any], said: str
) -> None:
    tifffile.imwrite(tmp_path / "a.tif", numbers, **{"photometric": "minisblack", **how})
    for channels in (1, 3):
        with pytest.raises(BadFile, match=f"is a TIFF of {said}$"):
            read_image(tmp_path / "a.tif", channels=channels)


def test_a_damaged_one_is_bad_wherever_it_is_cut_or_changed(tmp_path: Path) -> None:
    how = {"photometric": "rgb", "rowsperstrip": 7}
    whole = written(tmp_path / "planes.tif", DEEP[..., :3], planes=True, **how).read_bytes()
    path, floats = tmp_path / "bad.tif", tiff_bytes(RANDOM.random((6, 5, 1)))
    for end in (9, 60, 300, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:end])
        with pytest.raises(BadFile):
            read_image(path, channels=3)
    for data in (whole, floats):
        for _ in range(300):
            changed = bytearray(data)
            for at in RANDOM.integers(2, min(len(data), 400), 3) if data is whole else -RANDOM.integers(1, 200, 3):
                changed[at] = RANDOM.integers(256)
            path.write_bytes(changed)
            for read in (lambda: image_size(path), lambda: read_image(path, channels=3, max_pixels=100_000)):
                with contextlib.suppress(BadFile):
                    read()
