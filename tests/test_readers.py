"""Files of every kind become samples, and samples files of the same kind; bad ones are told, whatever they hold."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flexvae_cli import plugins
from flexvae_cli.api.readers import BadFile, Reader, Reading
from flexvae_cli.engine.data.choosing import choose, made
from flexvae_cli.engine.data.files import FilePreparation, checked_header, read_numbers, usable_files
from flexvae_cli.engine.data.images import read_image
from flexvae_cli.engine.data.opening import image_size
from flexvae_cli.engine.data.readers.audio import resampled
from flexvae_cli.engine.data.readers.images import Images
from flexvae_cli.engine.data.sources import Item
from flexvae_cli.engine.latents.sources import SourceFiles
from flexvae_cli.errors import DataError, UsageError

REAL = Path(__file__).parent / "data" / "real"
MOST = 64_000_000


def a(name: str, **values: Any) -> Reader:
    return made(plugins.installed().registry, name, values).reader


def sample(reader: Reader, path: Path, like: tuple[int, ...], most: int = MOST) -> np.ndarray:
    return read_numbers(reader, path, like, most).sample().numpy()


def reason(reader: Reader, path: Path, like: tuple[int, ...], most: int = MOST) -> str:
    """Why a file is bad; its header or its numbers tell, and nothing else is raised."""
    with pytest.raises(BadFile) as caught:
        sample(reader, path, like, most)
    return caught.value.reason


# ----------------------------------------------------------------------------------------------------------- arrays


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["<i2", ">i2", "<f8", ">f4", "u1"])
def test_arrays_of_every_byte_order_and_memory_order_are_their_numbers(tmp_path: Path, dtype: str, order: str) -> None:
    numbers = np.arange(2 * 5 * 6).reshape(2, 5, 6)
    np.save(tmp_path / "a.npy", np.array(numbers, dtype=dtype, order=order))
    np.savez(tmp_path / "b.npz", what=np.array(numbers, dtype=dtype, order=order), rate=np.array(360))
    wanted = numbers / 59 * 2 - 1
    reader = a("arrays", low=0, high=59)
    for name in ("a.npy", "b.npz"):
        found = read_numbers(reader, tmp_path / name, (2, 1, 1), MOST)
        np.testing.assert_allclose(found.sample().numpy(), wanted, atol=1e-6)
        back = reader.write(found.sample().numpy(), found.about, reader.suffix(name))
        loaded = np.load(io.BytesIO(back))
        loaded = loaded["what"] if name == "b.npz" else loaded
        np.testing.assert_allclose(loaded, numbers, atol=1e-5)
        assert loaded.dtype == np.dtype(dtype)
        assert np.isfortran(loaded) == (order == "F")


def test_where_the_channels_are_is_said(tmp_path: Path) -> None:
    numbers = np.linspace(-1, 1, 24, dtype=np.float32).reshape(8, 3)
    np.save(tmp_path / "a.npy", numbers)
    reader = a("arrays", channels="last")
    np.testing.assert_allclose(sample(reader, tmp_path / "a.npy", (3, 4)), numbers.T, atol=1e-7)
    assert "has 8 channels; wanted are 3" in reason(a("arrays"), tmp_path / "a.npy", (3, 4))
    found = read_numbers(reader, tmp_path / "a.npy", (3, 4), MOST)
    np.testing.assert_array_equal(
        np.load(io.BytesIO(reader.write(found.sample().numpy(), found.about, ".npy"))), numbers
    )


def test_an_array_without_channels_has_one_and_stays_so(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(256, dtype=np.uint8).reshape(16, 16))
    reader = a("arrays")
    found = read_numbers(reader, tmp_path / "a.npy", (1, 4, 4), MOST)
    assert found.sample().shape == (1, 16, 16)
    back = np.load(io.BytesIO(reader.write(found.sample().numpy(), found.about, ".npy")))
    np.testing.assert_array_equal(back, np.arange(256, dtype=np.uint8).reshape(16, 16))


def test_a_range_is_of_the_type_or_given_or_of_the_file(tmp_path: Path) -> None:
    numbers = np.array([10, 20, 60], np.int16)
    np.save(tmp_path / "a.npy", numbers)
    assert "holds int16 from 10 to 60, whose range is not known" in reason(a("arrays"), tmp_path / "a.npy", (1, 2))
    np.testing.assert_allclose(
        sample(a("arrays", range="file"), tmp_path / "a.npy", (1, 2))[0], [-1, -0.6, 1], atol=1e-6
    )
    clipped = sample(a("arrays", low=0, high=40), tmp_path / "a.npy", (1, 2))[0]
    np.testing.assert_allclose(clipped, [-0.5, 0, 1], atol=1e-6)
    for values, what in (
        ({"low": 1}, "go together"),
        ({"low": 2, "high": 1}, "below"),
        ({"low": 0, "high": 1, "range": "file"}, "leave one out"),
    ):
        with pytest.raises(UsageError, match=what):
            a("arrays", **values)


def claiming(shape: str, descr: str = "'<f4'") -> bytes:
    """An .npy whose header claims what is not there."""
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + b"\0" * 16


def test_bad_arrays_are_told(tmp_path: Path) -> None:
    marker = tmp_path / "marker"

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (marker,))

    reader, path = a("arrays"), tmp_path / "x.npy"
    np.save(path, np.array([Evil()], dtype=object), allow_pickle=True)
    assert "pickle refused" in reason(reader, path, (1, 4))
    np.savez(tmp_path / "x.npz", np.array([1.0, 2.0]))
    with zipfile.ZipFile(tmp_path / "o.npz", "w") as archive:
        archive.writestr("x.npy", path.read_bytes())
    assert "pickle refused" in reason(a("arrays", key="x"), tmp_path / "o.npz", (1, 4))
    bad = {
        "(1000000000000,)": "is truncated: 4,000,000,000,000 bytes",
        "(0,)": "is empty",
        "(2, 2, 2, 2)": "axes; wanted are 1",
    }
    for shape, what in bad.items():
        path.write_bytes(claiming(shape) + b"\0" * 64)
        assert what in reason(reader, path, (1, 4)), shape
    path.write_bytes(claiming("(4,)", "'<c8'") + b"\0" * 64)
    assert "not real numbers" in reason(reader, path, (1, 4))
    path.write_bytes(b"")
    assert reason(reader, path, (1, 4)) == "is empty"
    path.write_bytes(pickle.dumps([1, 2]))
    assert "neither an .npy nor an .npz" in reason(reader, path, (1, 4))
    np.save(path, np.array([0.5, np.nan, np.inf], np.float32))
    assert "2 numbers that are not finite" in reason(reader, path, (1, 2))
    assert "set data.key" in reason(reader, _two(tmp_path / "two.npz"), (1, 4))
    assert "5 positions; data.max_pixels allows 3" in reason(reader, _saved(path, np.zeros(5, np.float32)), (1, 4), 3)
    assert not marker.exists()


def test_a_reason_can_be_printed_whatever_a_file_has_in_it(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", **{"\x1b[31m": np.zeros(8), "b": np.zeros(8)})
    told = reason(a("arrays"), tmp_path / "x.npz", (1, 4))
    assert told == "holds several arrays (\N{REPLACEMENT CHARACTER}[31m, b): set data.key"


def _two(path: Path) -> Path:
    np.savez(path, a=np.zeros(8, np.float32), b=np.zeros(8, np.float32))
    return path


def _saved(path: Path, numbers: np.ndarray) -> Path:
    np.save(path, numbers)
    return path


# ------------------------------------------------------------------------------------------------------------ audio

soundfile = pytest.importorskip("soundfile")


@pytest.mark.parametrize(
    ("suffix", "subtype"),
    [(".wav", "PCM_16"), (".wav", "PCM_24"), (".wav", "FLOAT"), (".wav", "PCM_U8"), (".flac", "PCM_16")],
)
def test_a_sound_comes_back_as_it_went_in(tmp_path: Path, suffix: str, subtype: str) -> None:
    x = (np.sin(np.arange(4000) / 9) * 0.8)[:, None] * [1.0, -0.5]
    soundfile.write(tmp_path / f"a{suffix}", x, 22_050, subtype=subtype)
    reader = a("audio")
    found = read_numbers(reader, tmp_path / f"a{suffix}", (2, 100), MOST)
    assert found.sample().shape == (2, 4000)
    np.testing.assert_allclose(found.sample().numpy(), x.T, atol=0.01)
    (tmp_path / f"b{suffix}").write_bytes(reader.write(found.sample().numpy(), found.about, suffix))
    before, after = (soundfile.info(tmp_path / f"{name}{suffix}") for name in "ab")
    for key in ("samplerate", "channels", "frames", "subtype", "format"):
        assert getattr(before, key) == getattr(after, key), key
    again = soundfile.read(tmp_path / f"b{suffix}", dtype="float32", always_2d=True)[0]
    np.testing.assert_allclose(again.T, found.sample().numpy(), atol=1e-2 if subtype == "PCM_U8" else 1e-4)


def test_rates_and_channels_are_converted_where_that_is_asked(tmp_path: Path) -> None:
    n = np.arange(8000)
    soundfile.write(tmp_path / "a.wav", np.stack([np.sin(n / 20), np.sin(n / 20)], 1) * 0.5, 8000, subtype="FLOAT")
    assert "8,000 samples per second; wanted are 16,000" in reason(a("audio", rate=16_000), tmp_path / "a.wav", (2, 10))
    assert "has 2 channels; wanted are 1" in reason(a("audio"), tmp_path / "a.wav", (1, 10))
    reader = a("audio", rate=16_000, resample=True, mix=True)
    found = read_numbers(reader, tmp_path / "a.wav", (1, 10), MOST)
    assert found.sample().shape == (1, 16_000)
    inner = slice(2000, -2000)  # the ends of the spectrum's period ring
    np.testing.assert_allclose(found.sample()[0, inner], np.sin(np.arange(16_000) / 40)[inner] * 0.5, atol=5e-3)
    (tmp_path / "b.wav").write_bytes(reader.write(found.sample().numpy(), found.about, ".wav"))
    info = soundfile.info(tmp_path / "b.wav")
    assert (info.samplerate, info.frames, info.channels) == (8000, 8000, 1)


def test_resampling_keeps_a_tone_exactly() -> None:
    n = np.arange(1000)
    tone = np.cos(2 * np.pi * 5 * n / 1000)[:, None]
    np.testing.assert_allclose(resampled(tone, 1500)[:, 0], np.cos(2 * np.pi * 5 * np.arange(1500) / 1500), atol=1e-5)


def test_bad_sounds_are_told(tmp_path: Path) -> None:
    sound, reader, path = (REAL / "audio/elec_plip.wav").read_bytes(), a("audio"), tmp_path / "x.wav"
    bad = {
        b"": "is empty",
        b"<html>no</html>": "is no sound that can be read",
        sound[:20]: "is no sound that can be read",
        sound[:3000]: "is truncated",
        sound[:40] + struct.pack("<I", 2_000_000_000) + sound[44:]: "is truncated",
    }
    for data, what in bad.items():
        path.write_bytes(data)
        assert what in reason(reader, path, (1, 10)), what
    soundfile.write(path, np.zeros((0, 1)), 8000)
    assert "holds no samples" in reason(reader, path, (1, 10))
    soundfile.write(path, np.array([[0.0], [np.nan]]), 8000, subtype="FLOAT")
    assert "not finite" in reason(reader, path, (1, 2))
    soundfile.write(path, np.zeros((100, 6)), 8000)
    assert "only one channel can be made of several" in reason(a("audio", mix=True), path, (2, 10))
    os.mkfifo(tmp_path / "pipe.wav")
    assert reason(reader, tmp_path / "pipe.wav", (1, 2)) == "is not a regular file"


def test_a_sound_that_ends_early_is_told_whatever_its_kind(tmp_path: Path) -> None:
    """libsndfile gives what is there of each of these, without a word."""
    x = np.random.default_rng(0).uniform(-0.5, 0.5, (30_000, 1))
    for name, kind in (("a.wav", "WAV"), ("b.wav", "WAVEX"), ("c.ogg", "OGG")):
        soundfile.write(tmp_path / name, x, 16_000, format=kind)
        assert sample(a("audio"), tmp_path / name, (1, 10)).shape == (1, 30_000)
        whole = (tmp_path / name).read_bytes()
        for length in (len(whole) * 3 // 4, len(whole) - 1):
            (tmp_path / name).write_bytes(whole[:length])
            assert "is truncated" in reason(a("audio"), tmp_path / name, (1, 10)), (name, length)
    (tmp_path / name).write_bytes(whole[: whole.rindex(b"OggS")])  # whole pages, but for the last
    assert "is truncated" in reason(a("audio"), tmp_path / name, (1, 10))


@pytest.mark.parametrize(
    "about",
    [
        {"rate": "16000"},
        {"rate": 0},
        {"rate": 1 << 40},
        {"rate": 8000, "frames": 10**12},
        {"rate": 8000, "frames": "100"},
    ],
)
def test_what_is_said_of_a_sound_is_not_believed(about: dict[str, Any]) -> None:
    reader, x = a("audio", rate=16_000, resample=True), np.zeros((1, 200), np.float32)
    reader.check({"rate": 8000, "frames": 100}, x.shape, ".wav")
    for refuses in (lambda: reader.check(about, x.shape, ".wav"), lambda: reader.write(x, about, ".wav")):
        with pytest.raises((ValueError, TypeError)):
            refuses()


def test_files_of_the_rarer_rate_are_left_out(tmp_path: Path) -> None:
    for name, rate in (("a", 16_000), ("b", 16_000), ("c", 44_100)):
        soundfile.write(tmp_path / f"{name}.wav", np.zeros(2000), rate)
    reader = a("audio")
    items = [Item(name, tmp_path / name) for name in ("a.wav", "b.wav", "c.wav")]
    _, _, headers = usable_files(items, FilePreparation((1, 100), reader, MOST))
    assert reader.settled(headers) == {"rate": 16_000}
    good, bad, _ = usable_files(items, FilePreparation((1, 100), a("audio", rate=16_000), MOST))
    assert [item.name for item in good] == ["a.wav", "b.wav"]
    assert "44,100 samples per second" in bad[0].reason


# ---------------------------------------------------------------------------------------------------------- volumes

nibabel = pytest.importorskip("nibabel")
tifffile = pytest.importorskip("tifffile")


def nifti(path: Path, data: np.ndarray, affine: np.ndarray | None = None, slope: float | None = None) -> Path:
    image = nibabel.Nifti1Image(data, np.diag([2.0, -3, 1.5, 1]) if affine is None else affine)
    image.header.set_xyzt_units("mm", "sec")
    if slope is not None:
        image.header.set_slope_inter(slope, 5)
    packed = image.to_bytes()
    path.write_bytes(gzip.compress(packed) if path.suffix == ".gz" else packed)
    return path


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_volume_comes_back_with_its_affine_and_type(tmp_path: Path, suffix: str) -> None:
    numbers = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6) - 30
    affine = np.array([[-2, 0.1, 0, 7], [0.1, 3, 0, -8], [0, 0, 1.5, 9], [0, 0, 0, 1.0]])
    path, reader = nifti(tmp_path / f"a{suffix}", numbers, affine), a("volumes", low=-30, high=89)
    found = read_numbers(reader, path, (1, 2, 2, 2), MOST)
    np.testing.assert_allclose(found.sample()[0], (numbers + 30) / 119 * 2 - 1, atol=1e-6)
    out = tmp_path / f"b{suffix}"
    out.write_bytes(reader.write(found.sample().numpy(), found.about, reader.suffix(out.name)))
    before, after = nibabel.load(path), nibabel.load(out)
    np.testing.assert_array_equal(np.asarray(after.dataobj), numbers)
    np.testing.assert_allclose(after.affine, before.affine, atol=1e-5)
    assert after.get_data_dtype() == np.int16
    assert after.header.get_zooms() == before.header.get_zooms()
    assert after.header.get_xyzt_units() == before.header.get_xyzt_units()
    assert [int(after.header[key]) for key in ("qform_code", "sform_code")] == [
        int(before.header[key]) for key in ("qform_code", "sform_code")
    ]


@pytest.mark.parametrize("dtype", [np.int64, np.uint64])
def test_whole_numbers_of_64_bits_come_back(tmp_path: Path, dtype: type) -> None:
    numbers = np.arange(24, dtype=dtype).reshape(2, 3, 4)
    (tmp_path / "a.nii").write_bytes(nibabel.Nifti1Image(numbers, np.eye(4), dtype=dtype).to_bytes())
    reader = a("volumes", low=0, high=23)
    found = read_numbers(reader, tmp_path / "a.nii", (1, 2, 2, 2), MOST)
    back = nibabel.Nifti1Image.from_bytes(reader.write(found.sample().numpy(), found.about, ".nii"))
    assert back.get_data_dtype() == dtype
    np.testing.assert_array_equal(np.asarray(back.dataobj), numbers)


def test_a_side_that_nifti_1_has_no_room_for_makes_a_nifti_2() -> None:
    written = a("volumes").write(np.zeros((1, 40_000, 1, 1), np.float32), {}, ".nii")
    assert nibabel.Nifti2Image.from_bytes(written).shape == (40_000, 1, 1)


def test_fields_that_no_manifest_has_room_for_are_not_kept(tmp_path: Path) -> None:
    """No use is made of them in such a file, and a manifest has no room for them."""
    data = bytearray(nifti(tmp_path / "a.nii", np.zeros((2, 2, 2), np.uint8)).read_bytes())
    data[252:254] = struct.pack("<h", 0)  # qform_code: the affine is that of srow
    data[256:260] = data[104:108] = struct.pack("<f", np.nan)  # quatern_b, pixdim[7]
    data[296:312] = bytes(16)  # srow_y: the affine is flat
    (tmp_path / "a.nii").write_bytes(data)
    read, x = SourceFiles([Item("a", tmp_path / "a.nii")], a("volumes"), (1, 2, 2, 2), MOST)[0]
    assert x.shape == (1, 2, 2, 2)
    assert {"quatern_b", "pixdim"}.isdisjoint(read.source.about["header"])
    assert json.dumps(read.source.about, allow_nan=False)
    back = nibabel.Nifti1Image.from_bytes(a("volumes").write(x, read.source.about, ".nii"))
    assert back.shape == (2, 2, 2)
    np.testing.assert_array_equal(back.affine, read.source.about["affine"])


@pytest.mark.parametrize("said", [float("nan"), 1j, b"x"])
def test_what_a_manifest_has_no_room_for_makes_a_bad_file(tmp_path: Path, monkeypatch, said: Any) -> None:
    np.save(tmp_path / "a.npy", np.zeros((1, 4), np.float32))
    reader = a("arrays")
    monkeypatch.setattr(reader, "read", lambda path, like: Reading(np.zeros((4, 1)), -1.0, 1.0, {"said": said}))
    read, bad = SourceFiles([Item("a", tmp_path / "a.npy")], reader, (1, 2), MOST)[0]
    assert isinstance(bad, BadFile)
    assert "has no place in a manifest" in bad.reason
    assert read.source.about == {}


def test_slope_and_intercept_are_applied(tmp_path: Path) -> None:
    numbers = np.arange(8, dtype=np.float64).reshape(2, 2, 2)
    image = nibabel.Nifti1Image(numbers.astype(np.int16), np.eye(4))
    header = bytearray(image.to_bytes())
    header[112:120] = struct.pack("<ff", 0.5, 10)  # scl_slope and scl_inter
    (tmp_path / "a.nii").write_bytes(header)
    found = sample(a("volumes", low=10, high=14), tmp_path / "a.nii", (1, 2, 2, 2))
    np.testing.assert_allclose(found[0], (numbers * 0.5) / 4 * 2 - 1, atol=1e-6)


def test_the_volumes_of_a_series_are_channels_or_one_is_taken(tmp_path: Path) -> None:
    numbers = np.arange(2 * 3 * 4 * 2, dtype=np.uint8).reshape(2, 3, 4, 2)
    path = nifti(tmp_path / "a.nii", numbers)
    both = read_numbers(a("volumes"), path, (2, 2, 2, 2), MOST)
    np.testing.assert_allclose(both.sample(), np.moveaxis(numbers, -1, 0) / 127.5 - 1, atol=1e-6)
    one = sample(a("volumes", volume=1), path, (1, 2, 2, 2))
    np.testing.assert_allclose(one[0], numbers[..., 1] / 127.5 - 1, atol=1e-6)
    assert "has 2 volumes; wanted are 1" in reason(a("volumes"), path, (1, 2, 2, 2))
    assert "has no volume 5" in reason(a("volumes", volume=5), path, (1, 2, 2, 2))
    back = nibabel.Nifti1Image.from_bytes(a("volumes").write(both.sample().numpy(), both.about, ".nii"))
    np.testing.assert_array_equal(np.asarray(back.dataobj), numbers)


def test_a_stack_of_tiff_is_a_volume(tmp_path: Path) -> None:
    numbers = np.arange(3 * 4 * 5, dtype=np.uint16).reshape(3, 4, 5) * 100
    tifffile.imwrite(tmp_path / "a.tif", numbers, photometric="minisblack", resolution=(300, 300))
    reader = a("volumes")
    found = read_numbers(reader, tmp_path / "a.tif", (1, 2, 2, 2), MOST)
    np.testing.assert_allclose(found.sample()[0], numbers / 32767.5 - 1, atol=1e-6)
    (tmp_path / "b.tif").write_bytes(reader.write(found.sample().numpy(), found.about, ".tif"))
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "b.tif"), numbers)
    tifffile.imwrite(tmp_path / "c.tif", numbers[0], photometric="minisblack")
    assert "is no stack of grey pages" in reason(reader, tmp_path / "c.tif", (1, 2, 2, 2))
    with pytest.raises(BadFile, match="is a stack of one channel; wanted are 2"):
        reader.header(tmp_path / "a.tif", (2, 2, 2, 2))


def test_pages_of_one_bit_and_of_a_single_value_are_not_taken_for_cut_ones(tmp_path: Path) -> None:
    bits = np.arange(12 * 16 * 24).reshape(12, 16, 24) % 7 == 0
    pages = [Image.fromarray(page) for page in bits]
    for compression in ("raw", "tiff_deflate"):
        pages[0].save(
            path := tmp_path / f"{compression}.tif", save_all=True, append_images=pages[1:], compression=compression
        )
        np.testing.assert_array_equal(sample(a("volumes"), path, (1, 2, 2, 2))[0], bits * 2.0 - 1)
    black = [Image.new("L", (4000, 4000))] * 2
    black[0].save(path := tmp_path / "zstd.tif", save_all=True, append_images=black[1:], compression="zstd")
    assert a("volumes").header(path, (1, 2, 2, 2)).shape == (1, 2, 4000, 4000)
    tifffile.imwrite(path, np.zeros((3, 400, 500), np.uint8), photometric="minisblack")
    path.write_bytes(path.read_bytes()[:9000])
    assert "is truncated: 600,000 bytes" in reason(a("volumes"), path, (1, 2, 2, 2))


def test_bad_volumes_are_told(tmp_path: Path) -> None:
    reader, whole = a("volumes"), (REAL / "mri/front.nii.gz").read_bytes()
    bad = {
        b"": "is empty",
        b"not at all": "is no volume that can be read",
        whole[: len(whole) // 2]: "is truncated",
    }
    for data, what in bad.items():
        (tmp_path / "x.nii.gz").write_bytes(data)
        assert what in reason(reader, tmp_path / "x.nii.gz", (1, 8, 8, 8)), what
    numbers = np.zeros((4, 4, 4), np.float32)
    numbers[1, 2, 3] = np.nan
    assert "1 numbers that are not finite" in reason(reader, nifti(tmp_path / "n.nii", numbers), (1, 2, 2, 2))
    giant = bytearray(nifti(tmp_path / "g.nii", np.zeros((2, 2, 2), np.uint8)).read_bytes())
    giant[42:48] = struct.pack("<hhh", 32000, 32000, 1000)  # the dimensions that its header claims
    (tmp_path / "g.nii").write_bytes(giant)
    assert "is truncated: 1,024,000,000,000 bytes" in reason(reader, tmp_path / "g.nii", (1, 2, 2, 2))
    giant[42:48] = struct.pack("<hhh", 0, 2, 2)
    (tmp_path / "g.nii").write_bytes(giant)
    assert reason(reader, tmp_path / "g.nii", (1, 2, 2, 2))


# ------------------------------------------------------------------------------------------------- images and choice


def test_a_pam_keeps_sixteen_bits_and_its_meaning(tmp_path: Path) -> None:
    path = REAL / "multichannel/flower-middle.pam"
    raw = np.frombuffer(path.read_bytes().partition(b"ENDHDR\n")[2], ">u2").reshape(128, 128, 4)
    assert image_size(path) == (128, 128)
    np.testing.assert_array_equal(read_image(path, channels=4), raw)
    opaque = read_image(path, channels=3)
    alpha = raw[..., 3:] / 65535
    np.testing.assert_allclose(opaque, raw[..., :3] * alpha + 65535 * (1 - alpha), atol=1)
    assert opaque.dtype == np.uint16
    back = Images().write(np.moveaxis(raw / 65535 * 2 - 1, -1, 0).astype(np.float32), {"bits": 16}, ".pam")
    assert back.partition(b"ENDHDR\n")[2] == raw.tobytes()
    (tmp_path / "half.pam").write_bytes(path.read_bytes()[:5000])
    with pytest.raises(BadFile, match="is truncated"):
        read_image(tmp_path / "half.pam", channels=4)
    (tmp_path / "head.pam").write_bytes(b"P7\nWIDTH x\nENDHDR\n")
    with pytest.raises(BadFile, match="damaged or truncated PAM"):
        read_image(tmp_path / "head.pam", channels=4)


def test_images_of_six_channels_are_read_as_they_are(tmp_path: Path) -> None:
    pixels = np.arange(4 * 5 * 6, dtype=np.uint8).reshape(4, 5, 6)
    (tmp_path / "a.pam").write_bytes(b"P7\nWIDTH 5\nHEIGHT 4\nDEPTH 6\nMAXVAL 255\nENDHDR\n" + pixels.tobytes())
    found = sample(a("images"), tmp_path / "a.pam", (6, 2, 2))
    np.testing.assert_allclose(found, np.moveaxis(pixels, -1, 0) / 127.5 - 1, atol=1e-6)
    with pytest.raises(BadFile, match="has 6 channels; wanted are 3"):
        read_image(tmp_path / "a.pam", channels=3)


def test_an_image_of_other_channels_is_told_from_its_header(tmp_path: Path) -> None:
    reader = Images()
    (tmp_path / "a.png").write_bytes(reader.write(np.zeros((3, 8, 8), np.float32), {}, ".png"))
    (tmp_path / "b.pam").write_bytes(reader.write(np.zeros((5, 8, 8), np.float32), {}, ".pam"))
    for name, channels, what in (("a.png", 6, "has 4 channels at most"), ("b.pam", 6, "has 5 channels")):
        for look in (reader.header, reader.read):
            with pytest.raises(BadFile, match=f"{what}.*; wanted are {channels}"):
                look(tmp_path / name, (channels, 4, 4))
    with pytest.raises(BadFile, match="has 5 channels; wanted are 3"):
        reader.header(tmp_path / "b.pam", (3, 4, 4))


def test_max_pixels_is_what_is_set_and_nothing_else(tmp_path: Path) -> None:
    path, side = tmp_path / "a.pam", 8_001  # more pixels than where nothing is said
    path.write_bytes(f"P7\nWIDTH {side}\nHEIGHT {side}\nDEPTH 5\nMAXVAL 255\nENDHDR\n".encode())
    assert checked_header(Images(), path, (5, 4, 4), side * side).shape == (5, side, side)
    with pytest.raises(BadFile, match=r"data\.max_pixels allows 64,000,000"):
        checked_header(Images(), path, (5, 4, 4), MOST)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_images_of_sixteen_bits_are_written_with_sixteen(tmp_path: Path, channels: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 65536, (7, 5, channels), dtype=np.uint16)
    x = np.moveaxis(pixels / 65535 * 2 - 1, -1, 0).astype(np.float32)
    (tmp_path / "a.png").write_bytes(Images().write(x, {"bits": 16}, ".png"))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", channels=channels), pixels)


@pytest.mark.parametrize(
    ("folder", "shape", "name", "count"),
    [
        ("audio", (1, 1024), "audio", 7),
        ("ecg", (1, 1024), "arrays", 6),
        ("mri", (1, 8, 8, 8), "volumes", 4),
        ("ct", (1, 8, 8, 8), "arrays", 1),
        ("multichannel", (4, 8, 8), "images", 3),
        ("grey", (1, 8, 8), "images", 3),
    ],
)
def test_the_reader_follows_from_the_files_and_the_shape(
    folder: str, shape: tuple[int, ...], name: str, count: int
) -> None:
    chosen, items = choose(plugins.installed().registry, str(REAL / folder), shape, "data.source")
    assert (chosen.name, len(items)) == (name, count)


def test_a_source_without_files_of_that_dimension_is_refused() -> None:
    with pytest.raises(DataError, match="samples of 1x100 have 1 axis"):
        choose(plugins.installed().registry, str(REAL / "mri"), (1, 100), "data.source")


@pytest.mark.parametrize(
    ("name", "reader", "like"),
    [
        ("audio/elec_plip.wav", "audio", (1, 100)),
        ("mri/front.nii.gz", "volumes", (1, 8, 8, 8)),
        ("ct/stent.npz", "arrays", (1, 8, 8, 8)),
        ("ecg/mitbih208-0.npy", "arrays", (1, 100)),
        ("multichannel/flower-upper.pam", "images", (6, 8, 8)),
    ],
)
def test_damage_is_never_more_than_a_bad_file(tmp_path: Path, name: str, reader: str, like: tuple[int, ...]) -> None:
    """Flipped bytes near the beginning, where the headers are, and cut ends: numbers come out, or `BadFile`."""
    draw = np.random.default_rng(0)
    whole = bytearray((REAL / name).read_bytes())
    path = tmp_path / Path(name).name
    values = {"low": 0.0, "high": 4096.0} if reader in ("arrays", "volumes") else {}
    chosen = made(plugins.installed().registry, reader, values).reader
    refused = 0
    for _ in range(40):
        data = whole.copy()
        for at in draw.integers(0, min(len(data), 400), draw.integers(1, 6)):
            data[at] = draw.integers(0, 256)
        path.write_bytes(data[: draw.integers(1, len(data))] if draw.random() < 0.3 else data)
        try:
            found = sample(chosen, path, like)
        except BadFile:
            refused += 1
        else:
            assert found.dtype == np.float32
            assert np.isfinite(found).all()
    assert refused


@pytest.mark.parametrize("name", ["images", "arrays", "audio", "volumes"])
def test_a_reader_goes_to_other_processes(name: str) -> None:
    preparation = FilePreparation((1, 8), a(name), MOST)
    assert type(pickle.loads(pickle.dumps(preparation)).reader) is type(preparation.reader)
