from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flexvae_cli.engine.naming import OutputFolder, open_output, output_names
from flexvae_cli.errors import UsageError

PARTS = st.text(alphabet="aAé\u0301.jpgn~", min_size=1, max_size=6).filter(lambda part: part.strip("."))
NAMES = st.lists(st.lists(PARTS, min_size=1, max_size=3).map("/".join), min_size=1, max_size=12, unique=True)


def folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a.jpg", "b/c.tiff"], ["a.png", "b/c.png"]),
        (["a.jpg", "a.png", "c.jpg"], ["a.jpg.png", "a.png.png", "c.png"]),
        (["no-extension", "v1.2"], ["no-extension.png", "v1.2.png"]),
        (["sheet.jpg"], ["sheet.jpg.png"]),
        (["Sheet.JPG"], ["Sheet.JPG.png"]),
        (["a.jpg", "a.png/b.jpg"], ["a.jpg.png", "a.png/b.png"]),
        (["x/a.jpg", "y/a.jpg"], ["x/a.png", "y/a.png"]),
    ],
)
def test_names_are_short_where_they_can_be(names, expected):
    assert list(output_names(names, ".png", reserved=["sheet.png"]).values()) == expected


def test_a_name_that_meets_the_longer_name_of_another_takes_a_hash():
    outputs = output_names(["a.jpg", "a.png", "a.jpg.png"], ".png")
    assert outputs["a.png"] == "a.png.png"
    assert outputs["a.jpg"].startswith("a.jpg~")
    assert len(set(outputs.values())) == 3


@pytest.mark.parametrize(
    "twins",
    [("a.jpg", "A.jpg"), ("caf\u00e9.jpg", "cafe\u0301.jpg"), ("Straße.png", "STRASSE.png"), ("x/a.png", "X/a.png")],
)
def test_names_that_some_file_system_confuses_stay_apart(twins):
    outputs = list(output_names(twins, ".png").values())
    assert folded(outputs[0]) != folded(outputs[1])
    assert outputs == list(reversed(output_names(twins[::-1], ".png").values()))


@pytest.mark.parametrize("base", ["x" * 251, "é" * 125, "日" * 83])
def test_a_long_name_is_cut_to_what_a_file_system_takes(base):
    names = [f"{base}.jpg", f"{base[:-1]}y.jpg"]
    outputs = output_names(names, ".safetensors")
    assert all(len(os.fsencode(output)) <= 255 for output in outputs.values())
    assert len(set(outputs.values())) == 2
    assert all(output.startswith(base[:60]) for output in outputs.values())


def test_a_name_that_is_not_utf8_is_kept():
    name = os.fsdecode(b"caf\xe9.jpg")
    assert os.fsencode(output_names([name], ".png")[name]) == b"caf\xe9.png"


@settings(max_examples=200, deadline=None)
@given(NAMES)
def test_no_two_outputs_meet(names):
    outputs = output_names(names, ".png", reserved=["sheet.png"])
    keys = [folded(output) for output in outputs.values()]
    folders = {folded(str(parent)) for name in names for parent in Path(name).parents}
    assert len(set(keys)) == len(names)
    assert not set(keys) & ({"sheet.png"} | folders)
    assert outputs == output_names(names, ".png", reserved=["sheet.png"])
    assert all(Path(o).parent == Path(n).parent and o.endswith(".png") for n, o in outputs.items())


@pytest.mark.parametrize(
    ("source", "output"), [("photos", "photos"), ("photos", "photos/out"), ("photos/in", "photos"), ("photos", "link")]
)
def test_an_output_in_the_input_or_around_it_is_refused(tmp_path, source, output):
    (tmp_path / "photos" / "in").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    with pytest.raises(UsageError, match="must not lie in the input"):
        open_output(tmp_path / output, [tmp_path / source], overwrite=True)


def test_an_output_that_holds_something_wants_overwrite(tmp_path):
    (tmp_path / "out").mkdir()
    assert open_output(tmp_path / "out", [], overwrite=False).root == (tmp_path / "out").resolve()
    (tmp_path / "out" / "bad_files.jsonl").write_text("")  # all that a run leaves that fails for them
    open_output(tmp_path / "out", [], overwrite=False)
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="is not empty"):
        open_output(tmp_path / "out", [], overwrite=False)
    open_output(tmp_path / "out", [], overwrite=True).write("b.txt", b"new")
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"
    with pytest.raises(UsageError, match="is not a folder"):
        open_output(tmp_path / "out" / "mine.txt", [], overwrite=True)


def test_nothing_is_written_outside_or_through_a_link(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out" / "link").symlink_to(tmp_path / "elsewhere")
    folder = OutputFolder((tmp_path / "out").resolve())
    for name in ("../x.png", "a/../../x.png", str(tmp_path / "x.png"), "link/x.png"):
        with pytest.raises(UsageError, match="leads out of the output folder"):
            folder.write(name, b"x")
    assert sorted(p.name for p in tmp_path.rglob("*.png")) == []


def test_a_link_in_the_place_of_a_file_is_replaced_not_followed(tmp_path):
    victim = tmp_path / "victim.txt"
    victim.write_text("untouched")
    out = tmp_path / "out"
    out.mkdir()
    (out / "a.png").symlink_to(victim)
    OutputFolder(out.resolve()).write("a.png", b"new")
    assert victim.read_text() == "untouched"
    assert (out / "a.png").read_bytes() == b"new"
    assert not (out / "a.png").is_symlink()


def test_what_a_killed_process_left_is_removed(tmp_path):
    (tmp_path / ".tmp-flexvae-1").write_bytes(b"half")
    OutputFolder(tmp_path).write("a/b.txt", b"whole")
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == ["b.txt"]
