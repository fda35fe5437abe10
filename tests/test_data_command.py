"""`flexvae data check`."""

from __future__ import annotations

import gzip
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flexvae_cli.engine.data.pam import pam_bytes
from flexvae_cli.errors import Exit

REAL = Path(__file__).parent / "data" / "real"
CONFIG = """
[model]
encoder = "e.json"
decoder = "d.json"
[data]
source = "sounds"
input = "1x1024"
reader = "audio"
validation = 0.5
[train]
run_dir = "run"
max_steps = 1
"""


def checked(flexvae, *arguments):
    done = flexvae("data", "check", *arguments, "--json")
    return done.exit_code, json.loads(done.stdout)


def test_formats_sizes_and_ranges_are_told(flexvae, photos):
    Image.fromarray(np.full((9, 30), 1000, np.uint16)).save(photos / "deep.png")
    code, told = checked(flexvae, photos)
    assert code == 0
    assert told["images"] == 6
    kinds = {(kind["format"], kind["mode"], kind["bits"]): kind for kind in told["kinds"]}
    assert {key: kind["images"] for key, kind in kinds.items()} == {
        ("PNG", "RGB", 8): 3,
        ("JPEG", "RGB", 8): 1,
        ("BMP", "RGB", 8): 1,
        ("PNG", "I;16", 16): 1,
    }
    png = kinds["PNG", "RGB", 8]
    assert (png["smallest"], png["largest"]) == ([16, 16], [40, 52])
    assert told["shorter_side"] == {"min": 9, "median": 16, "max": 40}
    assert told["range"] == {"min": 0.0, "max": 1.0}
    assert told["constant"] == ["deep.png"]
    assert told["bytes"] == sum(path.stat().st_size for path in photos.rglob("*.*"))
    assert "shorter side: 9 to 40, median 16" in flexvae("data", "check", photos).stdout


def test_what_is_unusable_is_told_and_ends_with_3(flexvae, photos):
    whole = (photos / "b/d.png").read_bytes()
    (photos / "b/d.png").write_bytes(whole[:-40])
    (photos / "page.jpg").write_text("<!doctype html>")
    code, told = checked(flexvae, photos, "--min-size", 13)
    assert code == Exit.DATA
    assert {bad["name"]: bad["reason"] for bad in told["unusable"]} == {
        "b/d.png": "is truncated",
        "page.jpg": "looks like HTML, not an image",
        "e/f.bmp": "is too small: 20x12, wanted are 13x13 or more",
    }
    told = flexvae("data", "check", photos)
    assert told.exit_code == Exit.DATA
    assert "unusable: 2" in told.stdout


def test_duplicates_and_leaks_are_found_by_their_pixels(flexvae, photos, tmp_path):
    other = tmp_path / "validation"
    other.mkdir()
    with Image.open(photos / "b/c.png") as image:
        image.save(photos / "again.bmp")  # other bytes, the same pixels
        image.save(other / "c.tiff")
    shutil.copy(photos / "e/f.bmp", other / "fresh.bmp")
    (photos / "e/f.bmp").unlink()
    code, told = checked(flexvae, photos)
    assert (code, told["duplicates"]) == (0, [["again.bmp", "b/c.png"]])
    code, told = checked(flexvae, photos, "--validation", other)
    assert code == Exit.DATA
    assert told["leaks"] == [{"training": name, "validation": "c.tiff"} for name in ("again.bmp", "b/c.png")]
    assert told["validation"]["images"] == 2
    assert "again.bmp is c.tiff" in flexvae("data", "check", photos, "--validation", other).stdout


def test_a_split_without_leaks_ends_with_0(flexvae):
    code, told = checked(flexvae, "builtin:scenery/val")
    assert (code, told["unusable"], told["duplicates"]) == (0, [], [])


def test_a_folder_that_is_not_there_is_refused(flexvae, tmp_path):
    assert flexvae("data", "check", tmp_path / "none").exit_code == Exit.DATA
    assert flexvae("data", "check", tmp_path, "--validation", tmp_path / "none").exit_code == Exit.DATA


def test_a_range_that_is_none_is_refused(flexvae, photos):
    for low, high in (("nan", 5), (0, "inf"), (0, "nan"), (5, 0)):
        done = flexvae("data", "check", photos, "--low", low, "--high", high)
        assert done.exit_code == Exit.USAGE
        assert "--low" in done.stderr


def test_pams_of_any_number_of_channels_are_looked_at(flexvae, tmp_path):
    (tmp_path / "a.pam").write_bytes(pam_bytes(np.arange(6 * 4 * 4).reshape(4, 4, 6), 255))
    (tmp_path / "b.pam").write_bytes(pam_bytes(np.arange(3 * 4 * 4).reshape(4, 4, 3), 255))
    Image.new("RGB", (4, 4)).save(tmp_path / "c.png")
    code, told = checked(flexvae, tmp_path, "--channels", 6)
    assert code == Exit.DATA
    assert [(kind["format"], kind["mode"], kind["images"]) for kind in told["kinds"]] == [("PAM", "6 channels", 1)]
    assert {bad["name"]: bad["reason"] for bad in told["unusable"]} == {
        "b.pam": "has 3 channels; wanted are 6",
        "c.png": "has 4 channels at most, since it is no PAM; wanted are 6",
    }
    _, told = checked(flexvae, tmp_path)
    assert {(kind["format"], kind["mode"]) for kind in told["kinds"]} == {("PAM", "RGB"), ("PNG", "RGB")}
    assert [bad["name"] for bad in told["unusable"]] == ["a.pam"]


def real(folder, *names):
    """A copy of real files in a new folder."""
    folder.mkdir()
    for name in names:
        shutil.copy(REAL / name, folder)
    return folder


def reasons(told):
    return {bad["name"]: bad["reason"] for bad in told["unusable"]}


def test_sounds_are_told_with_their_rates_and_found_twice_in_other_formats(flexvae, tmp_path):
    soundfile = pytest.importorskip("soundfile")
    sounds = real(tmp_path / "sounds", "audio/bd_klub.wav", "audio/sn_zome.wav")
    x, rate = soundfile.read(sounds / "sn_zome.wav", dtype="int16")
    soundfile.write(sounds / "again.flac", x, rate)
    soundfile.write(sounds / "stereo.wav", np.stack([x, x[::-1]], axis=1), 8000)
    (sounds / "cut.wav").write_bytes((sounds / "bd_klub.wav").read_bytes()[:-100])
    code, told = checked(flexvae, sounds)
    assert (code, told["reader"], told["images"]) == (Exit.DATA, "audio", 4)
    assert list(reasons(told)) == ["cut.wav"]
    assert "is truncated" in reasons(told)["cut.wav"]
    assert told["duplicates"] == [["again.flac", "sn_zome.wav"]]
    kinds = {(kind["format"], kind["mode"], kind["channels"], kind["rate"]): kind for kind in told["kinds"]}
    assert {key: kind["images"] for key, kind in kinds.items()} == {
        ("WAV", "PCM_16", 1, 16000): 2,
        ("FLAC", "PCM_16", 1, 16000): 1,
        ("WAV", "PCM_16", 2, 8000): 1,
    }
    flac = kinds["FLAC", "PCM_16", 1, 16000]
    assert flac["smallest"] == flac["largest"] == [len(x)]
    assert flac["numbers"]["max"] == pytest.approx(x.max() / 32768)
    _, told = checked(flexvae, sounds, "--channels", 1)
    assert sorted(reasons(told)) == ["cut.wav", "stereo.wav"]
    shown = flexvae("data", "check", sounds, "--validation", real(tmp_path / "more", "audio/sn_zome.wav"))
    assert "again.flac is sn_zome.wav" in shown.stdout
    assert "16,000" in shown.stdout


def test_volumes_are_told_with_their_spacing_and_found_twice_unpacked(flexvae, tmp_path):
    nibabel = pytest.importorskip("nibabel")
    volumes = real(tmp_path / "volumes", "mri/back.nii.gz", "mri/left.nii.gz")
    packed = (volumes / "back.nii.gz").read_bytes()
    (volumes / "again.nii").write_bytes(gzip.decompress(packed))
    (volumes / "cut.nii.gz").write_bytes(packed[: len(packed) // 2])
    fields = np.stack([np.asarray(nibabel.load(volumes / f"{name}.nii.gz").dataobj) for name in ("back", "left")], 3)
    nibabel.save(nibabel.Nifti1Image(fields, np.diag([2.0, 2.0, 3.5, 1.0])), volumes / "two.nii.gz")
    code, told = checked(flexvae, volumes)
    assert (code, told["reader"], list(reasons(told))) == (Exit.DATA, "volumes", ["cut.nii.gz"])
    assert told["duplicates"] == [["again.nii", "back.nii.gz"]]
    found = {(kind["format"], kind["channels"], tuple(kind["spacing"]), kind["images"]) for kind in told["kinds"]}
    assert found == {("NII.GZ", 1, (1, 1, 1), 2), ("NII", 1, (1, 1, 1), 1), ("NII.GZ", 2, (2, 2, 3.5), 1)}
    assert all(kind["smallest"] == [64, 64, 48] for kind in told["kinds"])
    assert "2x2x3.5" in flexvae("data", "check", volumes).stdout


def test_arrays_of_any_number_of_axes_are_told(flexvae, tmp_path):
    arrays = real(tmp_path / "arrays", "ecg/mitbih208-0.npy", "ecg-12lead.npz", "ct/stent.npz")
    x = np.load(arrays / "mitbih208-0.npy")
    np.savez(arrays / "again.npz", x=x.astype(">u2"))
    np.save(arrays / "nan.npy", np.array([0.5, np.nan, np.nan], np.float32))
    np.save(arrays / "still.npy", np.full(9, 7, np.uint8))
    code, told = checked(flexvae, arrays)
    assert (code, told["reader"]) == (Exit.DATA, "arrays")
    assert set(reasons(told)) == {"nan.npy", "ecg-12lead.npz", "stent.npz"}
    assert "2 numbers that are not finite" in reasons(told)["nan.npy"]
    assert "from -1125 to 1962.5, whose range is not known" in reasons(told)["ecg-12lead.npz"]
    assert told["duplicates"] == [["again.npz", "mitbih208-0.npy"]]
    assert told["constant"] == ["still.npy"]
    code, told = checked(flexvae, arrays, "--low", 0, "--high", 1000)
    kinds = {(kind["format"], kind["mode"]): kind for kind in told["kinds"]}
    assert kinds["NPZ", "int16"]["largest"] == [64, 64, 64]
    assert kinds["NPZ", "float32"]["smallest"] == [12, 4000]
    assert kinds["NPZ", "float32"]["numbers"] == {"min": -1125.0, "max": 1962.5}
    with np.load(arrays / "ecg-12lead.npz") as leads, np.load(arrays / "stent.npz") as ct:
        numbers = [x, x, leads["ecg"], next(ct[key] for key in ct if ct[key].ndim == 3), np.full(9, 7)]
    beyond = sum(int(((n < 0) | (n > 1000)).sum()) for n in numbers)
    assert told["clipped"] == pytest.approx(beyond / sum(n.size for n in numbers))
    assert told["range"]["max"] == 2.0
    _, told = checked(flexvae, arrays, "--low", 0, "--high", 1000, "--channels", 12)
    assert [(kind["channels"], kind["largest"]) for kind in told["kinds"]] == [(12, [4000])]


def test_mapped_numbers_that_are_not_finite_are_found_where_a_range_is_stated(flexvae, tmp_path):
    np.save(tmp_path / "a.npy", np.array([0.5, np.inf, 0.25], np.float32))
    code, told = checked(flexvae, tmp_path, "--low", 0, "--high", 1)
    assert code == Exit.DATA
    assert "holds 1 numbers that are not finite" in reasons(told)["a.npy"]


def test_tars_are_folders_of_arrays_and_latents_are_named(flexvae, tiny_model, photos, tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("mitbih208-0.npy", "mitbih208-1.npy"):
            tar.add(REAL / "ecg" / name, name)
    code, told = checked(flexvae, tmp_path / "a.tar")
    assert (code, told["images"], told["kinds"][0]["smallest"]) == (0, 2, [7200])
    assert told["bytes"] == sum((REAL / "ecg" / f"mitbih208-{n}.npy").stat().st_size for n in range(2))
    assert flexvae("encode", tiny_model, photos, tmp_path / "latents", "--workers", 0).exit_code == 0
    code, told = checked(flexvae, tmp_path / "latents", "--reader", "latents")
    assert told == checked(flexvae, tmp_path / "latents")[1]
    assert (code, told["reader"], told["images"], told["clipped"]) == (0, "latents", 5, 0)
    assert {kind["format"] for kind in told["kinds"]} == {"SAFETENSORS"}
    assert {kind["channels"] for kind in told["kinds"]} == {2}


def test_a_config_says_how_files_are_read_and_what_is_held_out(flexvae, tmp_path):
    soundfile = pytest.importorskip("soundfile")
    names = ["bd_klub", "drum_heavy_kick", "sn_zome", "tabla_dhec"]
    sounds = real(tmp_path / "sounds", *(f"audio/{name}.wav" for name in names))
    (tmp_path / "flexvae.toml").write_text(CONFIG)
    code, told = checked(flexvae, "--config", tmp_path / "flexvae.toml")
    assert (code, told["images"] + told["validation"]["images"], told["leaks"]) == (0, 4, [])
    for number in range(8):  # by their names some are held out and some are not
        shutil.copy(sounds / "sn_zome.wav", sounds / f"copy-{number}.wav")
    x, _ = soundfile.read(sounds / "sn_zome.wav", dtype="int16")
    soundfile.write(tmp_path / "other.wav", x, 8000)
    shutil.copy(tmp_path / "other.wav", sounds)
    soundfile.write(sounds / "short.wav", x[:1000], 16000)
    code, told = checked(flexvae, "--config", tmp_path / "flexvae.toml")
    both = reasons(told) | reasons(told["validation"])
    assert code == Exit.DATA
    assert set(both) == {"other.wav", "short.wav"}
    assert "wanted are 16,000" in both["other.wav"]  # the rate of most files
    assert both["short.wav"] == "is too small: 1000, wanted are 1024 or more"
    assert told["leaks"]
    assert {pair["training"][:4] for pair in told["leaks"]} <= {"copy", "sn_z"}
    override = ("--config", tmp_path / "flexvae.toml", "--set", "data.resample=true", "--set", "data.rate=16000")
    code, told = checked(flexvae, tmp_path / "other.wav", *override)
    assert (code, told["images"], told["kinds"][0]["smallest"]) == (0, 1, [2 * len(x)])
    twice = flexvae("data", "check", "--config", tmp_path / "flexvae.toml", "--low", 0, "--reader", "audio")
    assert twice.exit_code == Exit.USAGE
    assert "--reader, --low" in twice.stderr


def test_a_reader_that_is_none_or_finds_nothing_is_refused(flexvae, photos):
    done = flexvae("data", "check", photos, "--reader", "audoi")
    assert (done.exit_code, "audio" in done.stderr) == (Exit.USAGE, True)
    done = flexvae("data", "check", photos, "--reader", "audio")
    assert (done.exit_code, "for the reader audio" in done.stderr) == (Exit.DATA, True)
    done = flexvae("data", "check", photos, "--reader", "audio", "--low", 0, "--high", 1)
    assert (done.exit_code, "no parameter of that name" in done.stderr) == (Exit.USAGE, True)
    (photos / "b/c.png").unlink()
    done = flexvae("data", "check", photos / "b" / "none")
    assert (done.exit_code, "no such folder" in done.stderr) == (Exit.DATA, True)


def test_files_of_other_readers_are_not_passed_over_in_silence(flexvae, photos):
    shutil.copy(REAL / "audio" / "bd_klub.wav", photos / "b")
    shutil.copy(REAL / "ecg" / "mitbih208-0.npy", photos)
    code, told = checked(flexvae, photos)
    assert (code, told["reader"], told["others"]) == (0, "images", {"audio": 1, "arrays": 1})
    done = flexvae("data", "check", photos)
    assert "--reader audio" in done.stderr
    assert checked(flexvae, photos, "--reader", "arrays")[1]["others"] == {}
