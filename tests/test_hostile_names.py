"""Path safety of `infer`, `encode` and `decode` as a whole: every readable input one output, and nothing elsewhere."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flexvae_cli.errors import Exit

pytestmark = pytest.mark.skipif(os.name == "nt", reason="file names as POSIX has them")
NAMES = [
    b"a.jpg",
    b"a.png",
    b"A.png",
    b"a.png.png",
    b"cafe\xcc\x81.png",
    b"caf\xc3\xa9.png",
    b"latin\xe9.png",
    b"-rf.png",
    b"line\nbreak.png",
    b"escape\x1b[2J.png",
    b"..png",
    b"...png",
    b"~.png",
    b"manifest.png",
    b"sheet.jpg",
    b"x" * 251 + b".png",
    b"x" * 250 + b"y.png",
    b"folder/a.jpg",
    b"folder/a.jpg.png",
    b"a.png.safetensors/b.png",
    b"CON.png",
]


@pytest.fixture
def hostile(tmp_path: Path) -> tuple[Path, int]:
    """A folder of images with such names, and of things that are none; how many images a reader must find."""
    root = tmp_path / "in" / "photos"
    for index, name in enumerate(NAMES):
        path = root / os.fsdecode(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(index).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path, "JPEG" if name.endswith(b".jpg") else "PNG")
    outside = tmp_path / "outside"
    outside.mkdir()
    Image.new("RGB", (8, 8)).save(outside / "secret.png")
    (root / "inside.png").symlink_to(root / "folder" / "a.jpg")  # counts
    (root / "leads out.png").symlink_to(outside / "secret.png")
    (root / "folder that leads out").symlink_to(outside)
    (root / "loop.png").symlink_to(root / "loop.png")
    (root / "folder" / "up").symlink_to(root)
    os.link(outside / "secret.png", root / "hard.png")  # counts: it is a file of the folder
    os.mkfifo(root / "pipe.png")
    (root / "folder.png").mkdir()
    (root / "null.png").symlink_to("/dev/null")
    (root / ".hidden.png").write_bytes((root / "a.png").read_bytes())
    count = sum(not name.startswith(b".") for name in NAMES) + 2
    return root, count


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and not p.is_symlink()}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("command", ["infer", "files", "npy"])
def test_every_readable_image_has_an_output_of_its_own_below_the_output(
    flexvae, tiny_model, hostile, tmp_path, command
):
    root, count = hostile
    before = files_in(tmp_path)
    out = tmp_path / "out"
    how = ("infer",) if command == "infer" else ("encode",)
    options = () if command == "infer" else ("--format", command, "--posterior", "mean")
    done = flexvae(*how, tiny_model, root, out, "--workers", 0, "--json", *options)
    assert done.exit_code == 0, done.stderr
    assert "\x1b" not in done.stderr + done.stdout
    told = json.loads(done.stdout)
    suffix = {"infer": ".png", "files": ".safetensors", "npy": ".npy"}[command]
    written = [name for name in files_in(out) if name.endswith(suffix) and name != "sheet.png"]
    assert len(written) == count
    assert (told["count"] if command == "infer" else told["images"]) == count
    assert len({name.casefold() for name in written}) == count
    now = files_in(tmp_path)
    assert {name: data for name, data in now.items() if not name.startswith("out/")} == before


@pytest.mark.timeout(120)
@pytest.mark.parametrize("layout", ["shards", "files", "npy", "wds"])
def test_decoding_gives_every_latent_an_image_of_its_own(flexvae, tiny_model, hostile, tmp_path, layout):
    root, count = hostile
    encoded = flexvae("encode", tiny_model, root, tmp_path / "z", "--workers", 0, "--format", layout)
    assert encoded.exit_code == 0, encoded.stderr
    before = files_in(tmp_path)
    assert flexvae("decode", tiny_model, tmp_path / "z", tmp_path / "out").exit_code == 0
    assert len(files_in(tmp_path / "out")) == count
    now = files_in(tmp_path)
    assert {name: data for name, data in now.items() if not name.startswith("out/")} == before


@pytest.mark.parametrize("command", ["infer", "encode"])
def test_an_output_that_is_a_link_is_the_folder_behind_it(flexvae, tiny_model, photos, tmp_path, command):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "elsewhere")
    assert flexvae(command, tiny_model, photos, tmp_path / "out", "--workers", 0).exit_code == 0
    assert files_in(tmp_path / "elsewhere")
    (tmp_path / "in").symlink_to(photos)
    refused = flexvae(command, tiny_model, photos, tmp_path / "in" / "out", "--workers", 0)
    assert refused.exit_code == Exit.USAGE
    assert "must not lie in the input" in refused.stderr


def test_a_folder_of_the_output_that_is_a_link_is_not_followed(flexvae, tiny_model, photos, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    for command, options in (("infer", ()), ("encode", ("--format", "files"))):
        out = tmp_path / command
        out.mkdir()
        (out / "b").symlink_to(tmp_path / "elsewhere")
        refused = flexvae(command, tiny_model, photos, out, "--workers", 0, "--overwrite", *options)
        assert refused.exit_code == Exit.USAGE
        assert "through a link" in refused.stderr
    assert not list((tmp_path / "elsewhere").iterdir())
