from __future__ import annotations

import os
import pickle
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from flexvae_cli.engine.data.images import covering, read_image, to_image, to_tensor
from flexvae_cli.engine.data.opening import BadFile, image_size
from flexvae_cli.errors import UsageError

GREY, RED = 128, (200, 30, 60)


def saved(path: Path, image: Image.Image, **options: Any) -> Path:
    image.save(path, **options)
    return path


def colour(mode: str, value: object, size: tuple[int, int] = (6, 4)) -> Image.Image:
    return Image.new(mode, size, value)  # type: ignore[arg-type]


def marked() -> np.ndarray:
    """A 4 x 6 image that differs in all its orientations."""
    return np.arange(4 * 6, dtype=np.uint8).reshape(4, 6) * 10


def palette(transparency: bool, path: Path) -> Path:
    image = colour("P", 0)
    image.putpalette([*RED, 0, 255, 0])
    image.putpixel((0, 0), 1)
    return saved(path, image, **({"transparency": 0} if transparency else {}))


def near(pixel: np.ndarray, expected: tuple[int, ...], within: int = 3) -> bool:
    return bool(np.all(np.abs(pixel.astype(int) - np.array(expected)) <= within))


@pytest.mark.parametrize(
    ("mode", "value", "rgb", "alpha"),
    [
        ("1", 1, (255, 255, 255), 255),
        ("L", GREY, (GREY,) * 3, 255),
        ("LA", (GREY, 0), (255, 255, 255), 0),
        ("LA", (GREY, 255), (GREY,) * 3, 255),
        ("RGB", RED, RED, 255),
        ("RGBA", (*RED, 0), (255, 255, 255), 0),
        ("RGBA", (*RED, 255), RED, 255),
    ],
)
def test_every_mode_comes_as_every_number_of_channels(
    tmp_path: Path, mode: str, value: object, rgb: tuple[int, ...], alpha: int
) -> None:
    path = saved(tmp_path / "image.png", colour(mode, value))
    grey = (round(0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2]),)
    for channels, expected in ((1, grey), (3, rgb)):
        array = read_image(path, channels=channels)
        assert array.shape == (4, 6, channels)
        assert array.dtype == np.uint8
        assert near(array[1, 2], expected, within=1)
    for channels in (2, 4):
        array = read_image(path, channels=channels)
        assert array.shape == (4, 6, channels)
        assert (array[..., -1] == alpha).all()


def test_palettes_and_their_transparency(tmp_path: Path) -> None:
    opaque, clear = palette(False, tmp_path / "p.png"), palette(True, tmp_path / "t.png")
    assert near(read_image(opaque, channels=3)[1, 1], RED, 0)
    assert near(read_image(clear, channels=3)[1, 1], (255, 255, 255), 0)
    assert near(read_image(clear, channels=3)[0, 0], (0, 255, 0), 0)
    assert read_image(clear, channels=4)[1, 1, 3] == 0
    assert near(read_image(saved(tmp_path / "p.gif", Image.open(opaque)), channels=3)[1, 1], RED, 0)


def test_a_transparent_colour_in_an_rgb_png(tmp_path: Path) -> None:
    path = saved(tmp_path / "trns.png", colour("RGB", RED), transparency=RED)
    assert near(read_image(path, channels=3)[0, 0], (255, 255, 255), 0)
    assert near(read_image(path, channels=3, background="#000000")[0, 0], (0, 0, 0), 0)


def test_the_background_shows_through(tmp_path: Path) -> None:
    path = saved(tmp_path / "half.png", colour("RGBA", (200, 0, 0, 128)))
    assert near(read_image(path, channels=3, background="#0000ff")[0, 0], (100, 0, 127), 1)
    assert read_image(path, channels=1, background="#000000")[0, 0, 0] == pytest.approx(0.299 * 100, abs=1)


@pytest.mark.parametrize("suffix", [".jpg", ".tif"])
def test_cmyk(tmp_path: Path, suffix: str) -> None:
    path = saved(tmp_path / f"cmyk{suffix}", colour("CMYK", (0, 255, 255, 0), (16, 16)))
    assert near(read_image(path, channels=3)[8, 8], (255, 0, 0), 4)
    assert read_image(path, channels=4).shape == (16, 16, 4)
    assert read_image(path, channels=1).shape == (16, 16, 1)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".pgm"])
def test_sixteen_bits_are_kept_and_not_clipped(tmp_path: Path, suffix: str) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (32, 48)).astype(np.uint16)
    values[0, :2] = 0, 65535
    path = saved(tmp_path / f"deep{suffix}", Image.fromarray(values))
    array = read_image(path, channels=1)
    assert array.dtype == np.uint16
    assert np.array_equal(array[..., 0], values)
    assert np.array_equal(read_image(path, channels=3)[..., 2], values)
    assert (read_image(path, channels=4)[..., 3] == 65535).all()
    tensor = to_tensor(array)
    assert (tensor.min().item(), tensor.max().item()) == (-1, 1)


def test_scaled_sixteen_bits_are_an_average(tmp_path: Path) -> None:
    values = np.full((64, 64), 1001, np.uint16)
    array = read_image(saved(tmp_path / "flat.png", Image.fromarray(values)), channels=1, cover=(7, 7))
    assert (array == 1001).all()


def big_endian_tiff(path: Path, values: np.ndarray, *, bits: int = 16, photometric: int = 1, kind: int = 1) -> Path:
    """The least TIFF there is, most significant byte first, one strip."""
    data = values.astype(values.dtype.newbyteorder(">")).tobytes()
    height, width = values.shape
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1), (278, height)]
    tags += [(279, len(data)), (339, kind)]
    entries = b"".join(struct.pack(">HHLL", tag, 4, 1, value) for tag, value in tags)
    head = struct.pack(">2sHL", b"MM", 42, 8 + len(data))
    path.write_bytes(head + data + struct.pack(">H", len(tags)) + entries + bytes(4))
    return path


def test_big_endian_sixteen_bits(tmp_path: Path) -> None:
    values = np.array([[0, 1, 256], [255, 65535, 4660]], np.uint16)
    assert np.array_equal(read_image(big_endian_tiff(tmp_path / "b.tif", values), channels=1)[..., 0], values)


def test_float_tiffs(tmp_path: Path) -> None:
    values = np.linspace(0, 1, 24, dtype=np.float32).reshape(4, 6)
    array = read_image(saved(tmp_path / "f.tif", Image.fromarray(values)), channels=1)
    assert array.dtype == np.float32
    assert np.array_equal(array[..., 0], values)
    assert to_tensor(array).max() == 1
    inverted = big_endian_tiff(tmp_path / "white0.tif", values, bits=32, photometric=0, kind=3)
    assert np.allclose(read_image(inverted, channels=1)[..., 0], 1 - values)
    for wrong, what in ((255, "outside 0 to 1"), (-1, "outside 0 to 1"), (np.nan, "24 numbers that are not finite")):
        path = saved(tmp_path / "wrong.tif", Image.fromarray(values * np.float32(wrong)))
        with pytest.raises(BadFile, match=what):
            read_image(path, channels=1)


def test_whole_numbers_of_unknown_range_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "i.tif", Image.fromarray(np.array([[70000, -3]], np.int32)))
    with pytest.raises(BadFile, match="unknown range"):
        read_image(path, channels=1)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(tmp_path: Path, orientation: int, suffix: str) -> None:
    upright = np.kron(marked(), np.ones((8, 8), np.uint8))  # blocks that JPEG keeps
    undo = {1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1], 5: upright.T}
    undo |= {6: np.rot90(upright), 7: upright[::-1, ::-1].T, 8: np.rot90(upright, -1)}
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if suffix == ".webp" else {"quality": 95} if suffix == ".jpg" else {}
    path = saved(tmp_path / f"turned{suffix}", Image.fromarray(undo[orientation].copy()), exif=exif, **options)
    array = read_image(path, channels=1)
    assert image_size(path) == array.shape[:2] == (32, 48)
    assert np.abs(array[..., 0].astype(int) - upright).max() <= 4
    assert read_image(path, channels=1, cover=(8, 8)).shape == (8, 12, 1)
    if suffix != ".tif":  # where the tag belongs to the format
        raw = read_image(path, channels=1, exif=False)
        assert image_size(path, exif=False) == raw.shape[:2] == undo[orientation].shape


@pytest.mark.parametrize("suffix", [".gif", ".png", ".webp", ".tif"])
def test_the_first_frame_is_read(tmp_path: Path, suffix: str) -> None:
    frames = [colour("RGB", c) for c in (RED, (0, 255, 0), (0, 0, 255))]
    path = saved(tmp_path / f"moving{suffix}", frames[0], save_all=True, append_images=frames[1:])
    array = read_image(path, channels=3)
    assert array.shape == (4, 6, 3)
    assert near(array[2, 2], RED, 8)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".bmp", ".tif", ".gif", ".ppm", ".avif"])
def test_content_counts_not_the_extension(tmp_path: Path, suffix: str) -> None:
    path = saved(tmp_path / f"image{suffix}", colour("RGB", RED, (32, 32))).rename(tmp_path / "image.txt")
    assert near(read_image(path, channels=3)[3, 3], RED, 8)


def test_profiles_are_converted_to_srgb(tmp_path: Path) -> None:
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    # the same profile with red and green exchanged is a profile in which RED is green
    position = {srgb[i : i + 4]: i for i in range(132, 132 + 12 * struct.unpack(">L", srgb[128:132])[0], 12)}
    other = bytearray(srgb.replace("sRGB".encode("utf-16-be"), "swap".encode("utf-16-be")))
    red, green = position[b"rXYZ"], position[b"gXYZ"]
    other[red : red + 4], other[green : green + 4] = b"gXYZ", b"rXYZ"
    for profile, expected in ((srgb, RED), (bytes(other), (30, 200, 60)), (lab, RED), (b"junk", RED)):
        for mode, value in (("RGB", RED), ("RGBA", (*RED, 255))):
            path = saved(tmp_path / "profiled.png", colour(mode, value), icc_profile=profile)
            assert near(read_image(path, channels=3)[0, 0], expected, 3)


def test_cover_scales_with_the_proportions_kept(tmp_path: Path) -> None:
    assert covering((300, 400), (30, 30)) == (30, 40)
    assert covering((400, 300), (30, 30)) == (40, 30)
    assert covering((300, 400), (30, 60)) == (45, 60)
    assert covering((30, 30), (30, 30)) == (30, 30)
    assert covering((10, 20), (30, 30)) == (30, 60)
    ramp = np.tile(np.linspace(0, 255, 800).astype(np.uint8), (600, 1))
    for suffix in (".jpg", ".png"):
        array = read_image(saved(tmp_path / f"ramp{suffix}", Image.fromarray(ramp)), channels=1, cover=(60, 60))
        assert array.shape == (60, 80, 1)
        assert np.abs(array[30, :, 0] - np.linspace(0, 255, 80)).max() < 4


def test_enlarging_is_bounded(tmp_path: Path) -> None:
    path = saved(tmp_path / "thin.png", colour("L", 0, (20000, 1)))
    with pytest.raises(BadFile, match=r"enlarged to the input has 1310.72 megapixels; data.max_pixels allows 64"):
        read_image(path, channels=1, cover=(256, 256))


def test_tensors_and_back() -> None:
    for channels in (1, 2, 3, 4):
        array = np.random.default_rng(0).integers(0, 256, (16, 16, channels)).astype(np.uint8)
        array[0, 0], array[0, 1] = 0, 255
        tensor = to_tensor(array)
        assert (tensor.shape, tensor.dtype) == ((channels, 16, 16), torch.float32)
        assert (tensor.min().item(), tensor.max().item()) == (-1, 1)
        assert np.array_equal(np.asarray(to_image(tensor)).reshape(array.shape), array)
    assert np.asarray(to_image(torch.tensor([-9.0, 9.0, 0.001]).view(1, 1, 3))).tolist() == [[0, 255, 128]]
    for channels in (0, 5):
        with pytest.raises(UsageError, match="channels, not"):
            to_image(torch.zeros(channels, 2, 2))
        with pytest.raises(UsageError, match=r"data.input: an image has 1"):
            read_image("nowhere.png", channels=channels)


def png_claiming(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">L", len(body)) + kind + body + struct.pack(">L", zlib.crc32(kind + body))

    header = struct.pack(">LLBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")
    )


def corrupt(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def sound(tmp_path: Path, suffix: str) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3)).astype(np.uint8)
    return saved(tmp_path / f"sound{suffix}", Image.fromarray(noise)).read_bytes()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"\n<!DOCTYPE html><html>404</html>", "looks like HTML, not an image"),
        (b'<?xml version="1.0"?>\n<svg width="1"/>', "is an SVG drawing, which is not read"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer; fetch"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "is an HEIC image"),
        (b"just some text", "is not an image (JPEG, PNG, "),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "is not an image (JPEG, PNG, "),
        (b"\xff\xd8\xff\xe0 and nothing more", "is truncated"),
        (b"\x89PNG\r\n\x1a\n and nothing more", "is a damaged or truncated PNG file"),
        (png_claiming(20_000, 20_000), "has 400 megapixels; data.max_pixels allows 64"),
        (png_claiming(10_000, 10_000), "has 100 megapixels; data.max_pixels allows 64"),
    ],
)
def test_bad_files_say_what_they_are(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "bad.jpg"
    path.write_bytes(content)
    for read in (lambda: read_image(path, channels=3), lambda: image_size(path)):
        with pytest.raises(BadFile) as caught:
            read()
        assert caught.value.path == path
        assert caught.value.reason.startswith(reason)


def test_max_pixels_can_be_raised_above_that_of_pillow(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    path.write_bytes(png_claiming(20_000, 20_000))
    limit, filters = Image.MAX_IMAGE_PIXELS, list(warnings.filters)
    assert image_size(path, max_pixels=10**9) == (20_000, 20_000)
    assert limit == Image.MAX_IMAGE_PIXELS is not None
    assert filters == list(warnings.filters)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".bmp", ".tif", ".gif", ".ppm", ".avif"])
def test_truncated_files(tmp_path: Path, suffix: str) -> None:
    data = sound(tmp_path, suffix)
    path = tmp_path / "cut"
    for length in (len(data) // 2, len(data) - 30):
        path.write_bytes(data[:length])
        with pytest.raises(BadFile):
            read_image(path, channels=3)


def test_every_checksum_of_a_png_is_looked_at(tmp_path: Path) -> None:
    data = sound(tmp_path, ".png")
    path = tmp_path / "bad.png"
    for at in (len(data) - 14, len(data) - 5, len(data) // 2):  # checksum of the pixels, that of the end, the pixels
        path.write_bytes(corrupt(data, at))
        with pytest.raises(BadFile, match=r"checksum|damaged"):
            read_image(path, channels=3)
    path.write_bytes(data[:-1])
    with pytest.raises(BadFile, match="is truncated"):
        read_image(path, channels=3)


def test_what_is_not_a_file_is_never_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to("pipe.png")
    for name in ("pipe.png", "link.png", ".", "/dev/zero"):
        with pytest.raises(BadFile, match="is not a regular file"):
            read_image(tmp_path / name, channels=3)
    with pytest.raises(BadFile, match="cannot be opened: no such file"):
        read_image(tmp_path / "gone.png", channels=3)


def test_a_bad_file_survives_the_way_from_a_worker() -> None:
    bad = pickle.loads(pickle.dumps(BadFile(Path("a.png"), "is empty")))
    assert (bad.path, bad.reason, str(bad)) == (Path("a.png"), "is empty", "a.png is empty")


def test_damaged_exif_does_not_cost_the_photograph(tmp_path: Path) -> None:
    path = saved(tmp_path / "photo.jpg", colour("RGB", RED, (16, 16)), exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert read_image(path, channels=3).shape == (16, 16, 3)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">L", len(body)) + kind + body + struct.pack(">L", zlib.crc32(kind + body))


def deep_png(
    pixels: np.ndarray, *extra: bytes, packed: bytes | None = None, sides: tuple[int, int] | None = None
) -> bytes:
    """A PNG of 16 bits per channel, written by hand: pixels (h, w, 2 to 4), chunks that go before the pixels."""
    height, width, channels = pixels.shape
    if packed is None:
        packed = zlib.compress(b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels))
    header = struct.pack(">LLBBBBB", *(sides or (width, height)), 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", packed), (b"IEND", b"")]
    first, *rest = (chunk(kind, body) for kind, body in chunks)
    return b"\x89PNG\r\n\x1a\n" + first + b"".join(extra) + b"".join(rest)


def deep_pixels(channels: int, size: tuple[int, int] = (5, 7)) -> np.ndarray:
    return np.random.default_rng(channels).integers(0, 65536, (*size, channels)).astype(np.uint16)


@pytest.mark.parametrize("bands", [2, 3, 4])
def test_colour_pngs_of_sixteen_bits_keep_them(tmp_path: Path, bands: int) -> None:
    path, pixels = tmp_path / "deep.png", deep_pixels(bands)
    path.write_bytes(deep_png(pixels))
    colour = pixels if bands == 3 else pixels[..., :-1]
    alpha = pixels[..., -1:] if bands != 3 else np.full((5, 7, 1), 65535, np.uint16)
    rgb = np.broadcast_to(colour, (5, 7, 3))
    array = read_image(path, channels=4)
    assert array.dtype == np.uint16
    assert np.array_equal(array, np.concatenate([rgb, alpha], axis=2))
    for background in ("#ffffff", "#204060"):
        behind = np.array([int(background[i : i + 2], 16) * 257 for i in (1, 3, 5)])
        seen = (rgb.astype(np.float64) * alpha + behind * (65535.0 - alpha)) / 65535
        found = read_image(path, channels=3, background=background)
        assert found.shape == (5, 7, 3)
        assert np.abs(found - seen).max() < 0.51 + 0.01
        grey = read_image(path, channels=1, background=background)[..., 0]
        assert np.abs(grey - seen @ (0.299, 0.587, 0.114)).max() < 0.52
    assert np.array_equal(read_image(path, channels=2)[..., 1:], alpha)
    assert np.abs(read_image(path, channels=2)[..., 0] - rgb @ (0.299, 0.587, 0.114)).max() < 0.52


def test_the_transparent_colour_of_a_deep_png(tmp_path: Path) -> None:
    path, pixels = tmp_path / "deep.png", np.full((2, 2, 3), 1000, np.uint16)
    pixels[0, 0] = 1, 2, 3
    path.write_bytes(deep_png(pixels, chunk(b"tRNS", struct.pack(">HHH", 1, 2, 3))))
    assert read_image(path, channels=4)[..., 3].tolist() == [[0, 65535], [65535, 65535]]
    assert read_image(path, channels=3)[0, 0].tolist() == [65535] * 3


def test_deep_pngs_are_turned_and_scaled(tmp_path: Path) -> None:
    path, pixels = tmp_path / "deep.png", deep_pixels(3, (16, 24))
    turned = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"  # EXIF: orientation 6
    path.write_bytes(deep_png(pixels, chunk(b"eXIf", turned)))
    assert image_size(path) == (24, 16)
    assert np.array_equal(read_image(path, channels=3), np.rot90(pixels, -1))
    assert read_image(path, channels=3, cover=(6, 4)).shape == (6, 4, 3)
    path.write_bytes(deep_png(np.full((16, 24, 3), 1001, np.uint16)))
    assert (read_image(path, channels=3, cover=(5, 5)) == 1001).all()


def test_what_is_transparent_does_not_bleed(tmp_path: Path) -> None:
    pixels = np.full((16, 16, 4), 65535, np.uint16)
    pixels[:, :8] = 0  # black that cannot be seen beside opaque white
    (tmp_path / "deep.png").write_bytes(deep_png(pixels))
    array = read_image(tmp_path / "deep.png", channels=4, cover=(5, 5))
    assert 0 < array[2, 2, 3] < 65535
    assert (array[2, 2, :3] >= 65530).all()


def test_a_deep_png_with_a_profile_is_converted(tmp_path: Path) -> None:
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    other = srgb.replace("sRGB".encode("utf-16-be"), "swap".encode("utf-16-be"))
    path = tmp_path / "deep.png"
    for profile, depth in ((srgb, np.uint16), (lab, np.uint16), (other, np.uint8)):
        path.write_bytes(deep_png(deep_pixels(3), chunk(b"iCCP", b"name\0\0" + zlib.compress(profile))))
        assert read_image(path, channels=3).dtype == depth


ROW = b"\0" + bytes(range(42))


@pytest.mark.parametrize(
    ("packed", "reason"),
    [
        (zlib.compress(ROW * 2), "is truncated"),
        (zlib.compress(ROW * 4 + ROW[:-1]), "is truncated"),
        (zlib.compress(ROW * 5)[:-1], "is damaged"),
        (zlib.compress(ROW * 6), "is damaged"),
        (zlib.compress(ROW * 2 + b"\5" + ROW[1:] + ROW * 2), "is damaged (an unknown filter)"),
        (zlib.compress(ROW * 5)[:-8] + b"\xff" * 8, "is "),
        (b"no zlib", "is damaged"),
        (b"", "is truncated"),
    ],
)
def test_damage_that_the_deep_decoder_would_not_survive(tmp_path: Path, packed: bytes, reason: str) -> None:
    """torchvision's decoder ends the process on most of these; the checksums of the chunks are right."""
    path = tmp_path / "deep.png"
    path.write_bytes(deep_png(np.zeros((5, 7, 3)), packed=packed))
    with pytest.raises(BadFile) as caught:
        read_image(path, channels=3)
    assert caught.value.reason.startswith(reason)


def test_a_deep_png_wider_than_its_decoder_takes(tmp_path: Path) -> None:
    path = tmp_path / "deep.png"
    path.write_bytes(deep_png(np.zeros((1, 1_000_001, 3))))
    with pytest.raises(BadFile, match="cannot be decoded with 16 bits per channel"):
        read_image(path, channels=3)


def test_damaged_deep_pngs_by_the_hundred(tmp_path: Path) -> None:
    chance, path, reasons = np.random.default_rng(0), tmp_path / "deep.png", list[str]()
    rows = b"".join(b"\0" + row.tobytes() for row in deep_pixels(4))
    for _ in range(500):
        packed = bytearray(rows if chance.random() < 0.5 else zlib.compress(rows))
        plain = len(packed) == len(rows)
        packed[chance.integers(len(packed))] = chance.integers(256)
        packed = packed[: chance.choice((len(packed), chance.integers(len(packed))))]
        path.write_bytes(deep_png(np.zeros((5, 7, 4)), packed=zlib.compress(packed) if plain else bytes(packed)))
        try:
            assert read_image(path, channels=3).shape == (5, 7, 3)
        except BadFile as bad:
            reasons.append(bad.reason)
    assert 100 < len(reasons) < 490
    assert all(reason.isprintable() for reason in reasons)
