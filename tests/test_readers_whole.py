"""Files that are damaged or cut where their libraries give what is there without a word, and what is said of them."""

from __future__ import annotations

import gzip
import io
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flexvae_cli import plugins
from flexvae_cli.api.readers import BadFile, Reader
from flexvae_cli.engine.data.choosing import made
from flexvae_cli.engine.data.files import read_numbers
from flexvae_cli.engine.data.readers.whole import CHUNK, require_end, require_pages

nibabel = pytest.importorskip("nibabel")
soundfile = pytest.importorskip("soundfile")
REAL = Path(__file__).parent / "data" / "real"
SIGNAL, CUBE = (1, 4), (1, 2, 2, 2)
RATE_AT = 24  # where a WAV has its rate


def a(name: str, **values: Any) -> Reader:
    return made(plugins.installed().registry, name, values).reader


def sample(reader: Reader, path: Path, like: tuple[int, ...]) -> np.ndarray:
    return read_numbers(reader, path, like, 64_000_000).sample().numpy()


def reason(reader: Reader, path: Path, like: tuple[int, ...]) -> str:
    with pytest.raises(BadFile) as caught:
        sample(reader, path, like)
    return caught.value.reason


def sound(kind: str, subtype: str = "PCM_16", length: int = 30_000, **more: Any) -> bytes:
    file, x = io.BytesIO(), np.random.default_rng(0).uniform(-0.5, 0.5, (length, 1))
    soundfile.write(file, x, 16_000, format=kind, subtype=subtype, **more)
    return file.getvalue()


def flipped(data: bytes, draw: np.random.Generator) -> bytes:
    """One bit is another, anywhere."""
    damaged = bytearray(data)
    damaged[draw.integers(len(data))] ^= 1 << draw.integers(8)
    return bytes(damaged)


@pytest.mark.parametrize(
    ("name", "reader", "like", "data"),
    [
        ("a.nii.gz", "volumes", CUBE, (REAL / "mri/back.nii.gz").read_bytes()),
        ("vorbis.ogg", "audio", SIGNAL, sound("OGG", "VORBIS")),
        ("opus.ogg", "audio", SIGNAL, sound("OGG", "OPUS")),
        ("a.flac", "audio", SIGNAL, sound("FLAC")),
        ("a.npz", "arrays", CUBE, (REAL / "ct/stent.npz").read_bytes()),
    ],
)
def test_one_bit_that_is_another_never_gives_other_numbers(
    tmp_path: Path, name: str, reader: str, like: tuple[int, ...], data: bytes
) -> None:
    chosen = a(reader) if reader == "audio" else a(reader, range="file")
    path, draw, refused = tmp_path / name, np.random.default_rng(1), 0
    path.write_bytes(data)
    whole = sample(chosen, path, like)
    for _ in range(30):
        path.write_bytes(flipped(data, draw))
        try:
            found = sample(chosen, path, like)
        except BadFile:
            refused += 1
        else:  # in what no checksum is of, and no number depends on
            np.testing.assert_array_equal(found, whole)
    assert refused >= 28


def test_a_packed_volume_is_read_to_its_end(tmp_path: Path) -> None:
    whole = nibabel.Nifti1Image(np.arange(60, dtype=np.uint8).reshape(3, 4, 5), np.eye(4)).to_bytes()
    path, reader = tmp_path / "a.nii.gz", a("volumes")
    halves = gzip.compress(whole[:380]) + gzip.compress(whole[380:])  # as programs that pack in parallel write it
    for good in (gzip.compress(whole), halves, gzip.compress(whole + bytes(1000)), gzip.compress(whole) + bytes(9)):
        path.write_bytes(good)
        np.testing.assert_allclose(sample(reader, path, CUBE).ravel(), np.arange(60) / 127.5 - 1, atol=1e-6)
    packed = bytearray(gzip.compress(whole))
    packed[-8] ^= 1  # of its checksum
    path.write_bytes(packed)
    assert "CRC" in reason(reader, path, CUBE)
    assert reader.header(path, CUBE).shape == (1, 3, 4, 5)
    path.write_bytes(gzip.compress(whole + bytes(1 << 25), 1))
    assert reason(reader, path, CUBE) == "goes on long after its numbers"
    with pytest.raises(BadFile, match="goes on"):
        require_end(path, io.BytesIO(bytes(2 * CHUNK + 1)), 2 * CHUNK)


def test_a_packed_array_is_read_to_its_end(tmp_path: Path) -> None:
    member, path = io.BytesIO(), tmp_path / "a.npz"
    np.save(member, np.linspace(-1, 1, 50, dtype=np.float32))
    with zipfile.ZipFile(path, "w") as archive:  # stored, with bytes behind the numbers
        archive.writestr("a.npy", member.getvalue() + b"behind" * 2000)
    assert sample(a("arrays"), path, SIGNAL).shape == (1, 50)
    damaged = bytearray(path.read_bytes())
    damaged[300] ^= 1  # in a number
    path.write_bytes(damaged)
    assert reason(a("arrays"), path, SIGNAL) == "is damaged: it cannot be unpacked"


@pytest.mark.parametrize(("kind", "endian"), [("RF64", "FILE"), ("WAV", "BIG"), ("WAV", "FILE"), ("WAVEX", "FILE")])
def test_half_a_file_of_every_kind_of_wav_is_told(tmp_path: Path, kind: str, endian: str) -> None:
    whole, path = sound(kind, endian=endian), tmp_path / "a.wav"
    path.write_bytes(whole)
    assert sample(a("audio"), path, SIGNAL).shape == (1, 30_000)
    for length in (len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        for look in (a("audio").header, a("audio").read):
            with pytest.raises(BadFile, match="is truncated: 60,000 bytes of samples are claimed"):
                look(path, SIGNAL)


def test_what_is_neither_wav_nor_flac_nor_ogg_is_not_read_behind_a_tag(tmp_path: Path) -> None:
    """Libsndfile would read whatever comes behind an ID3."""
    tag, path = b"ID3\x03\0\0\0\0\0\x0a" + bytes(10), tmp_path / "a.wav"
    path.write_bytes(tag + sound("FLAC"))
    assert sample(a("audio"), path, SIGNAL).shape == (1, 30_000)
    for kind in ("AIFF", "WAV"):
        path.write_bytes(tag + sound(kind))
        assert "neither WAV nor FLAC nor OGG" in reason(a("audio"), path, SIGNAL), kind


def test_every_page_of_an_ogg_is_looked_at(tmp_path: Path) -> None:
    whole, path = sound("OGG", "OPUS", 60_000), tmp_path / "a.ogg"
    starts = [at for at in range(len(whole)) if whole.startswith(b"OggS", at)]
    assert len(starts) > 3
    for every in (True, False):
        path.write_bytes(whole + b"TAG" + bytes(125))  # what some programs put behind the sound
        require_pages(path, every=every)
        path.write_bytes(whole[: starts[-1] + 40])
        with pytest.raises(BadFile, match="is truncated: its last page is cut"):
            require_pages(path, every=every)
        path.write_bytes(whole[: starts[-1]])
        with pytest.raises(BadFile, match="is truncated: it has no last page"):
            require_pages(path, every=every)
    path.write_bytes(whole[: starts[2]] + b"S" + whole[starts[2] + 1 :])
    with pytest.raises(BadFile, match="is damaged: a page is missing"):
        require_pages(path, every=True)
    path.write_bytes(whole[: starts[2] + 50] + b"?" + whole[starts[2] + 51 :])
    with pytest.raises(BadFile, match="does not fit its checksum"):
        require_pages(path, every=True)
    require_pages(path, every=False)  # as a header asks, which is to cost little
    assert "does not fit its checksum" in reason(a("audio"), path, SIGNAL)


@pytest.mark.parametrize(
    ("name", "rate"), [("a.wav", 2_000_000_000), ("a.wav", 10_000_001), ("a.flac", 700_000), ("a.ogg", 200_001)]
)
def test_a_rate_that_no_output_can_have_makes_a_bad_file(tmp_path: Path, name: str, rate: int) -> None:
    """Otherwise the output fails once the net has done its work, or, of OGG, the encoder crashes."""
    data, path, reader = bytearray(sound("WAV")), tmp_path / name, a("audio")
    data[RATE_AT : RATE_AT + 4] = struct.pack("<I", rate)
    path.write_bytes(data)
    told = f"there is no {path.suffix[1:].upper()} of {rate:,} samples per second"
    for look in (reader.header, reader.read):
        with pytest.raises(BadFile, match=told):
            look(path, SIGNAL)
    for refuses in (reader.write, lambda x, about, suffix: reader.check(about, x.shape, suffix)):
        with pytest.raises(ValueError, match=told):
            refuses(np.zeros((1, 8), np.float32), {"rate": rate}, path.suffix)
    data[RATE_AT : RATE_AT + 4] = struct.pack("<I", rate - 60_000 if rate < 10_000_000 else 10_000_000)
    path.write_bytes(data)
    found = read_numbers(reader, path, SIGNAL, 64_000_000)
    assert reader.write(found.sample().numpy(), found.about, path.suffix)


@pytest.mark.parametrize(("suffix", "most"), [(".flac", 8), (".ogg", 255)])
def test_channels_that_no_output_can_have_make_a_bad_file(tmp_path: Path, suffix: str, most: int) -> None:
    path, reader = tmp_path / f"a{suffix}", a("audio")
    x = np.zeros((most + 1, 8), np.float32)
    soundfile.write(path, x[:most].T, 16_000, format="WAV")
    assert reader.write(sample(reader, path, (most, 4)), {}, suffix)
    soundfile.write(path, x.T, 16_000, format="WAV")
    assert f"of {most + 1} channels" in reason(reader, path, (most + 1, 4))
    with pytest.raises(ValueError, match=f"of {most + 1} channels"):
        reader.write(x, {}, suffix)


def test_a_minute_of_ogg_is_written(tmp_path: Path) -> None:
    """In another process: the encoder overflows the stack of its own where it is given so much at once."""
    program = (
        "import numpy as np; from pathlib import Path; from flexvae_cli.engine.data.readers.audio import Audio;"
        "x = np.zeros((1, 3_000_000), np.float32); x[0, ::1000] = 0.5;"
        "data = Audio(None, resample=False, mix=False).write(x, {'rate': 48_000}, '.ogg');"
        f"Path({str(tmp_path / 'a.ogg')!r}).write_bytes(data)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    assert sample(a("audio"), tmp_path / "a.ogg", SIGNAL).shape == (1, 3_000_000)


def npy(header: str) -> bytes:
    packed = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(packed)) + packed + bytes(64)


@pytest.mark.parametrize(
    ("header", "told"),
    [
        ("{'descr': '<f4', 'fortran_order': False, 'shape': tuple([4])}", "no header that can be read"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (4,)}" + " " * 60_000, "no header that can be read"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (-4,)}", "is damaged: its shape is -4"),
    ],
)
def test_a_damaged_array_is_told_in_words_of_our_own(tmp_path: Path, header: str, told: str) -> None:
    """Those of numpy hold addresses of objects, and advice to trust pickles."""
    path = tmp_path / "a.npy"
    path.write_bytes(npy(header))
    said = reason(a("arrays"), path, SIGNAL)
    assert told in said
    assert "0x" not in said
    assert "pickle" not in said


def test_an_encrypted_array_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, a=np.zeros(8, np.float32))
    packed = bytearray(path.read_bytes())
    packed[packed.index(b"PK\x01\x02") + 8] |= 1  # the flag of encryption, in the list of contents
    packed[6] |= 1
    path.write_bytes(packed)
    assert reason(a("arrays"), path, SIGNAL) == "is packed in a way that is not read"


@pytest.mark.parametrize("name", ["empty.nii", "cut.nii", "html.nii", "html.nii.gz", "html.tif", "cut.nii.gz"])
def test_what_is_said_of_a_volume_does_not_say_where_it_lies(tmp_path: Path, name: str) -> None:
    packed = nibabel.Nifti1Image(np.zeros((3, 4, 5), np.uint8), np.eye(4)).to_bytes()
    cut = gzip.compress(packed[:-5]) if name.endswith(".gz") else packed[:-5]
    data = {"empty": b"", "cut": cut, "html": b"<html>no</html>"}[name.partition(".")[0]]
    said = set()
    for folder in ("one", "another"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_bytes(data)
        said.add(reason(a("volumes"), tmp_path / folder / name, CUBE))
    assert len(said) == 1
    assert str(tmp_path) not in said.pop()
