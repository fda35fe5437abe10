"""`flexvae data check`."""

from __future__ import annotations

import json
import shutil

import numpy as np
from PIL import Image

from flexvae_cli.engine.data.pam import pam_bytes
from flexvae_cli.errors import Exit


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
        "e/f.bmp": "is too small: 20x12 pixels (height x width)",
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
