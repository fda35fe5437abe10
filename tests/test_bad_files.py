"""Collections as they are found: whatever can be read is used, and every bad file is named once, with its reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import corpus
import pytest

from flexvae_cli.engine.manifest import read_manifest
from flexvae_cli.errors import Exit

pytest.importorskip("nibabel")
pytest.importorskip("soundfile")
pytest.importorskip("tifffile")


class Case(NamedTuple):
    """A kind of files.

    Attributes:
        fill: puts them into a folder, and says which are bad.
        shape: of a training sample.
        more: keys of [data].
    """

    fill: Callable[[Path], corpus.Bad]
    shape: str
    more: str = ""


CASES = {
    "pictures": Case(corpus.pictures, "3x8x8", "min_size = 1\n"),
    "sounds": Case(corpus.sounds, "1x64"),
    "volumes": Case(corpus.volumes, "1x4x4x4", 'reader = "volumes"\nlow = 0\nhigh = 119\n'),
    "arrays": Case(corpus.arrays, "1x16", 'reader = "arrays"\n'),
}
USES = ("infer", "encode")
ALL_BAD = ("--workers", 0, "--max-bad", 1)
PASSED_OVER = {"Thumbs.db", "notes.txt", "pipe.png", "nowhere.png"}


def config(folder: Path, case: Case, steps: int) -> Path:
    """A net for samples of that shape, that sees every file once."""
    channels, *space = case.shape.split("x")
    c = f"C{len(space)}d"
    (folder / "e.json").write_text(json.dumps([f"{c}_{channels}_8_4_4", "SiLU", f"{c}_8_4_1"]))
    (folder / "d.json").write_text(json.dumps([f"{c}_2_8_1", "SiLU", "UpS_4", f"{c}_8_{channels}_1"]))
    (folder / "flexvae.toml").write_text(
        '[model]\nencoder = "e.json"\ndecoder = "d.json"\n'
        f'[data]\nsource = "in"\ninput = "{case.shape}"\nvalidation = 0\nworkers = 0\nmax_bad = 1\n{case.more}'
        f'[train]\nrun_dir = "run"\nmax_steps = {steps}\nbatch_size = 1\nlog_every = 100\npreview_every = 1000\n'
        'checkpoint_every = 1000\ndevice = "cpu"\n'
    )
    return folder / "flexvae.toml"


def require_named(lines: list[dict[str, Any]], bad: corpus.Bad) -> None:
    """Every bad file once, with its reason, and no other."""
    assert sorted(line["name"] for line in lines) == sorted(bad)
    for line in lines:
        assert bad[line["name"]] in line["reason"], line


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("name", CASES)
def test_good_files_are_used_and_bad_ones_named_once(name: str, flexvae: Any, tmp_path: Path) -> None:
    case, source = CASES[name], tmp_path / "in"
    source.mkdir()
    bad = case.fill(source)
    good = {
        path.name for path in source.iterdir() if path.name[0] not in "._" and path.name not in PASSED_OVER | {*bad}
    }
    done = flexvae("train", "--config", config(tmp_path, case, len(good) + len(bad)))
    assert done.exit_code == 0, done.stderr
    require_named(lines_of(tmp_path / "run/bad_files.jsonl"), bad)
    for command in USES:
        out = tmp_path / command
        done = flexvae(command, tmp_path / "run", source, out, *ALL_BAD, "--json")
        assert done.exit_code == 0, done.stderr
        assert json.loads(done.stdout)["bad_files"] == len(bad)
        require_named(lines_of(out / "bad_files.jsonl"), bad)
        assert all(done.stderr.count(f"{each} ") == 1 for each in bad)
    assert {image.name for image in read_manifest(tmp_path / "encode").images} == good
    metrics = json.loads((tmp_path / "infer/metrics.json").read_text())
    assert {image["name"] for image in metrics["images"]} == good
    if name == "pictures":
        done = flexvae("data", "check", source, "--json")
        assert done.exit_code == Exit.DATA
        require_named(json.loads(done.stdout)["unusable"], bad)
    for each in good:
        (source / each).unlink()
    again = ("train", "--config", tmp_path / "flexvae.toml", "--set", f"train.run_dir='{tmp_path / 'again'}'")
    for command in (again, *((use, tmp_path / "run", source, tmp_path / f"no {use}", *ALL_BAD) for use in USES)):
        done = flexvae(*command)
        assert done.exit_code == Exit.DATA, done.stderr
        assert "can be " in done.stderr  # none of the files can be read, or used
    require_named(lines_of(tmp_path / "no infer/bad_files.jsonl"), bad)
    assert not (tmp_path / "no encode/manifest.json").exists()
