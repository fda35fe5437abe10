"""Damaged arrays, sounds and volumes by the hundred: `BadFile` is the only exception that leaves a reader."""

from __future__ import annotations

import gzip
import io
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mutations import MOST_GROWTH, NIGHTLY_TIMES, most_memory, mutated

from flexvae_cli import plugins
from flexvae_cli.api.readers import BadFile
from flexvae_cli.engine.data.choosing import made
from flexvae_cli.engine.data.files import read_numbers

nibabel = pytest.importorskip("nibabel")
soundfile = pytest.importorskip("soundfile")
tifffile = pytest.importorskip("tifffile")
ROUNDS = 120 * NIGHTLY_TIMES  # for each seed: 2,400, or 600,000
VOLUME = np.arange(4 * 5 * 6).reshape(4, 5, 6)
MOST = 64_000_000


def array(numbers: np.ndarray, packed: bool = False) -> bytes:
    file = io.BytesIO()
    (np.savez_compressed if packed else np.save)(file, numbers)  # type: ignore[operator]
    return file.getvalue()


def sound(kind: str, subtype: str, channels: int = 1) -> bytes:
    file, x = io.BytesIO(), np.sin(np.arange(600 * channels) / 7).reshape(600, channels) / 2
    soundfile.write(file, x, 8000, format=kind, subtype=subtype)
    return file.getvalue()


def nifti(numbers: np.ndarray, kind: Any = nibabel.Nifti1Image) -> bytes:
    packed: bytes = kind(numbers, np.diag([1.0, 2, 3, 1])).to_bytes()
    return packed


def stack(dtype: str, **options: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, VOLUME.astype(dtype), photometric="minisblack", **options)
    return file.getvalue()


SIGNAL, TWO, CUBE = (1, 4), (2, 4), (1, 2, 2, 2)
SEEDS: dict[str, tuple[str, tuple[int, ...], bytes]] = {
    "float.npy": ("arrays", SIGNAL, array(np.linspace(-1, 1, 60, dtype="<f4")[None])),
    "fortran.npy": ("arrays", TWO, array(np.asfortranarray(np.arange(60, dtype=">i2").reshape(2, 30)))),
    "array.npz": ("arrays", SIGNAL, array(np.arange(200, dtype="u1"), packed=True)),
    "16 bits.wav": ("audio", SIGNAL, sound("WAV", "PCM_16")),
    "float.wav": ("audio", TWO, sound("WAV", "FLOAT", 2)),
    "24 bits.wav": ("audio", SIGNAL, sound("WAVEX", "PCM_24")),
    "adpcm.wav": ("audio", SIGNAL, sound("WAV", "MS_ADPCM")),
    "sound.flac": ("audio", SIGNAL, sound("FLAC", "PCM_16")),
    "vorbis.ogg": ("audio", SIGNAL, sound("OGG", "VORBIS")),
    "opus.ogg": ("audio", SIGNAL, sound("OGG", "OPUS")),
    "volume.nii": ("volumes", CUBE, nifti(VOLUME.astype("u1"))),
    "second.nii": ("volumes", CUBE, nifti(VOLUME.astype("<i2"), nibabel.Nifti2Image)),
    "volume.nii.gz": ("volumes", CUBE, nifti(VOLUME.astype("f4"))),  # packed once it is damaged, or nothing gets by
    "packed.nii.gz": ("volumes", CUBE, gzip.compress(nifti(VOLUME.astype("f4")), mtime=0)),
    "16 bits.tif": ("volumes", CUBE, stack("u2")),
    "packed.tif": ("volumes", CUBE, stack("f4", compression="zlib")),
    "plain.tif": ("volumes", CUBE, stack("u1", metadata=None)),
    "big.tif": ("volumes", CUBE, stack("u1", bigtiff=True)),
    "imagej.tif": ("volumes", CUBE, stack("u2", imagej=True)),
    "ome.tif": ("volumes", CUBE, stack("u2", ome=True)),
}


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", SEEDS)
def test_only_bad_file_escapes(tmp_path: Path, name: str) -> None:
    kind, like, data = SEEDS[name]
    values = {} if kind == "audio" else {"low": 0.0, "high": 100.0}
    reader = made(plugins.installed().registry, kind, values).reader
    path, rng, bad, before = tmp_path / name, random.Random(name), list[str](), most_memory()
    for _ in range(ROUNDS):
        damaged = mutated(data, rng)
        path.unlink(missing_ok=True)  # it may be mapped still
        path.write_bytes(gzip.compress(damaged, 1) if name == "volume.nii.gz" else damaged)
        try:
            found = read_numbers(reader, path, like, MOST).sample().numpy()
        except BadFile as error:
            bad.append(error.reason)
        else:
            assert (found.dtype, found.ndim, len(found)) == (np.float32, len(like), like[0])
            assert np.abs(found).max() <= 1
    assert 0 < len(bad) < ROUNDS
    assert all(reason and reason.isprintable() for reason in bad)
    assert most_memory() - before < MOST_GROWTH
