"""Images whose numbers state no range, floats and whole numbers of 32 bits: read by the given range, and back."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flexvae_cli import plugins
from flexvae_cli.api.readers import BadFile, Reader
from flexvae_cli.config.settings import DataTable
from flexvae_cli.engine.data.choosing import made
from flexvae_cli.engine.data.images import read_image, read_picture
from flexvae_cli.engine.data.readers.span import Span
from flexvae_cli.engine.data.tiff import tiff_bytes
from flexvae_cli.engine.source import open_source

RAMP = np.linspace(-100, 4000, 9 * 7).reshape(9, 7, 1)


def reader(**values: Any) -> Reader:
    return made(plugins.installed().registry, "images", values).reader


def tiff(path: Path, numbers: np.ndarray, **options: bool) -> Path:
    path.write_bytes(tiff_bytes(numbers, **options))
    return path


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


@pytest.mark.parametrize("dtype", ["<f4", "<i4", "<u4", "<i2"])
def test_numbers_come_back_as_they_went_in(tmp_path: Path, dtype: str) -> None:
    numbers = (RAMP * (1e6 if dtype == "<u4" else 1)).clip(0 if dtype == "<u4" else None).astype(dtype)
    low, high = float(numbers.min()), float(numbers.max())
    path = tiff(tmp_path / "a.tif", numbers)
    given = [] if high >= 2**31 else [reader(low=low, high=high)]  # a config has no larger numbers
    for images in (reader(range="file"), *given):
        found = images.read(path, (1, 4, 4))
        assert (found.about["low"], found.about["high"], found.about["dtype"]) == (low, high, dtype)
        np.testing.assert_allclose(found.data, (numbers - low) / (high - low), atol=1e-7)
        assert images.suffix("b/A.TIFF") == ".tif"
        back = images.write(np.moveaxis(found.data * 2 - 1, -1, 0), found.about, ".tif")
        (tmp_path / "back.tif").write_bytes(back)
        again = images.read(tmp_path / "back.tif", (1, 4, 4))
        assert again.about["dtype"] == dtype
        np.testing.assert_allclose(again.data, found.data, atol=1e-6)
        assert opened(back).size == (7, 9)


def test_a_range_clips_and_leaves_what_states_its_own_alone(tmp_path: Path) -> None:
    numbers = np.array([[[-5.0], [0.0], [50.0], [200.0]]], np.float32)
    path = tiff(tmp_path / "a.tif", numbers)
    np.testing.assert_allclose(read_image(path, channels=1, span=Span("type", 0, 100)).flatten(), [0, 0, 0.5, 1])
    plain = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    plain.save(tmp_path / "b.tif")
    picture = read_picture(tmp_path / "b.tif", channels=1, span=Span("file"))
    assert (picture.pixels.dtype, dict(picture.about)) == (np.uint8, {})
    assert np.array_equal(
        np.asarray(opened(reader(range="file").write(as_sample(picture.pixels, 255), {}, ".tif"))), plain
    )
    deep = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
    Image.fromarray(deep).save(tmp_path / "c.tif")
    picture = read_picture(tmp_path / "c.tif", channels=1, span=Span("type", 0, 1))
    back = reader(low=0, high=1).write(as_sample(picture.pixels, 65535), picture.about, ".tif")
    assert np.array_equal(np.asarray(opened(back)), deep)


def as_sample(pixels: np.ndarray, white: int) -> np.ndarray:
    """(h, w, c) -> (c, h, w) in [-1, 1]."""
    return np.moveaxis(pixels.astype(np.float32) / white * 2 - 1, -1, 0)


def test_grey_numbers_are_grey_again_after_a_net_of_colours(tmp_path: Path) -> None:
    path = tiff(tmp_path / "a.tif", RAMP.astype(np.float32))
    images = reader(range="file")
    found = images.read(path, (3, 4, 4))
    assert found.data.shape == (9, 7, 3)
    back = opened(images.write(np.moveaxis(found.data * 2 - 1, -1, 0), found.about, ".tif"))
    assert back.mode == "F"
    np.testing.assert_allclose(np.asarray(back), RAMP[..., 0], atol=1e-3)


def test_what_is_black_stays_black(tmp_path: Path) -> None:
    path = tiff(tmp_path / "a.tif", RAMP.astype(np.float32), white_is_zero=True)
    found = reader(range="file").read(path, (1, 4, 4))
    assert found.data[0, 0, 0] == 1  # the least number is white
    back = opened(reader(range="file").write(np.moveaxis(found.data * 2 - 1, -1, 0), found.about, ".tif"))
    assert back.tag_v2[262] == 0  # type: ignore[attr-defined]
    np.testing.assert_allclose(np.asarray(back), RAMP[..., 0], atol=1e-3)


def test_without_a_range_there_is_no_guess(tmp_path: Path) -> None:
    how = "name data.reader, and set data.low and data.high, or data.range = 'file'"
    for dtype in ("<f4", "<i4"):
        path = tiff(tmp_path / "a.tif", RAMP.astype(dtype))
        with pytest.raises(BadFile, match=how):
            read_image(path, channels=1)
    assert reader().suffix("a.tif") == ".png"
    for bad, what in ((np.nan, "1 numbers that are not finite"), (np.inf, "1 numbers that are not finite")):
        numbers = RAMP.astype(np.float32)
        numbers[3, 3] = bad
        path = tiff(tmp_path / "bad.tif", numbers)
        for span in (Span("file"), Span("type", 0, 1)):
            with pytest.raises(BadFile, match=what):
                read_image(path, channels=1, span=span)
    with pytest.raises(BadFile, match="8 bits with a sign"):
        read_image(tiff(tmp_path / "i1.tif", np.full((4, 4, 1), -5, np.int8)), channels=1)


@pytest.mark.parametrize(
    ("numbers", "span", "wanted"),
    [
        ([1e20, 1e20], Span("file"), [0, 0]),
        ([-1e20, -1e20], Span("file"), [0, 0]),
        ([-3e38, 3e38], Span("file"), [0, 1]),
        ([0, 3e38], Span("type", -3e38, 3e38), [0.5, 1]),
    ],
)
def test_numbers_far_from_each_other_and_from_0(
    numbers: list[float], span: Span, wanted: list[float], tmp_path: Path
) -> None:
    path = tiff(tmp_path / "a.tif", np.array(numbers, np.float32).reshape(1, 2, 1))
    np.testing.assert_allclose(read_image(path, channels=1, span=span).flatten(), wanted)


def test_a_tiff_has_every_type_and_number_of_channels(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    for dtype in ("u1", "<u2", "<i4", "<f4", "<f8", ">f4"):
        for channels in (1, 2, 3, 4):
            numbers = np.arange(5 * 3 * channels).reshape(5, 3, channels).astype(dtype)
            path = tiff(tmp_path / "a.tif", numbers)
            assert np.array_equal(tifffile.imread(path).reshape(5, 3, channels), numbers), (dtype, channels)
    with pytest.raises(ValueError, match="a TIFF has no complex64"):
        tiff_bytes(np.zeros((2, 2, 1), np.complex64))


def test_training_reads_by_the_range_and_the_model_records_it(tmp_path: Path) -> None:
    for number in range(3):
        tiff(tmp_path / f"{number}.tif", (RAMP + number).astype(np.int32))
    table = {"source": str(tmp_path), "input": "1x7x7", "reader": "images", "validation": 0, "resize": "none"}
    source = open_source(DataTable.model_validate({**table, "low": -100, "high": 4002}), 0)
    assert source.reader == {"reader": "images", "parameters": {"range": "type", "low": -100.0, "high": 4002.0}}
    x = source.strip
    assert x.shape == (3, 1, 7, 7)
    assert -1 <= x.min() < x.max() <= 1
    Image.new("L", (9, 9)).save(tmp_path / "plain.png")
    plain = open_source(DataTable.model_validate({**table, "source": str(tmp_path / "plain.png")}), 0)
    assert plain.reader == {}


def test_every_command_keeps_the_numbers(flexvae: Any, tmp_path: Path) -> None:
    folder = tmp_path / "fields"
    folder.mkdir()
    for number in range(4):
        tiff(folder / f"{number}.tif", (np.arange(20 * 24, dtype=np.float32).reshape(20, 24, 1) * 8 + number))
    (tmp_path / "e.json").write_text(json.dumps(["C2d_1_8_4_4", "SiLU", "C2d_8_4_1"]))
    (tmp_path / "d.json").write_text(json.dumps(["C2d_2_8_1", "SiLU", "UpS_4", "C2d_8_1_3_1_1"]))
    (tmp_path / "c.toml").write_text(
        '[model]\nencoder = "e.json"\ndecoder = "d.json"\n[data]\nsource = "fields"\ninput = "1x16x16"\nworkers = 0\n'
        'reader = "images"\nlow = 0\nhigh = 4000\n[train]\nrun_dir = "run"\nmax_steps = 2\ndevice = "cpu"\n'
        "batch_size = 2\npreview_every = 0\n"
    )
    run = tmp_path / "run"
    for command in (
        ("train", "--config", tmp_path / "c.toml"),
        ("infer", run, folder, tmp_path / "out", "--workers", 0),
        ("encode", run, folder, tmp_path / "latents", "--workers", 0),
        ("decode", run, tmp_path / "latents", tmp_path / "decoded"),
        ("data", "check", folder, "--channels", 1, "--low", 0, "--high", 4000),
        ("data", "check", folder, "--channels", 1, "--range", "file"),
    ):
        done = flexvae(*command)
        assert done.exit_code == 0, (command, done.stderr)
    for number in range(4):
        data = (tmp_path / f"out/{number}.tif").read_bytes()
        assert data == (tmp_path / f"decoded/{number}.tif").read_bytes()
        image = opened(data)
        assert (image.mode, image.size) == ("F", (24, 20))
        assert np.ptp(np.asarray(image)) > 10  # in the unit of the files
    told = json.loads(flexvae("data", "check", folder, "--channels", 1, "--low", 0, "--high", 8000, "--json").stdout)
    assert told["kinds"][0]["bits"] == 32
    assert told["range"]["max"] == pytest.approx((479 * 8 + 3) / 8000)
    assert flexvae("data", "check", folder, "--channels", 1).exit_code == 3
    wrong = flexvae("data", "check", folder, "--low", 3)
    assert (wrong.exit_code, "low and high go together" in wrong.stderr) == (2, True)
