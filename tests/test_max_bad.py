"""Some unusable files are put up with; so many that the data cannot be what it was taken for are not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from flexvae_cli.engine.data.tolerance import FEW, require_few_bad
from flexvae_cli.errors import DataError, Exit

CONFIG = """
[model]
encoder = "e.json"
decoder = "d.json"
[data]
source = "photos"
input = "3x8x8"
validation = 0
workers = 0
[train]
run_dir = "run"
max_steps = 12
batch_size = 1
preview_every = 100
device = "cpu"
"""


@pytest.mark.parametrize(("bad", "files", "part"), [(FEW, FEW, 0.0), (11, 1100, 0.01), (300, 300, 1.0)])
def test_what_is_put_up_with(bad: int, files: int, part: float) -> None:
    require_few_bad(bad, files, part, "--max-bad ")


@pytest.mark.parametrize(
    ("bad", "files", "part", "enough"), [(11, 1099, 0.01, "0.02"), (11, 5000, 0.0, "0.01"), (299, 300, 0.9, "1.0")]
)
def test_what_is_not(bad: int, files: int, part: float, enough: str) -> None:
    with pytest.raises(DataError) as told:
        require_few_bad(bad, files, part, "--max-bad ")
    hint = told.value.problems[0].hint
    assert hint is not None
    assert f"`--max-bad {enough}`" in hint
    require_few_bad(bad, files, float(enough), "--max-bad ")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two photographs, five files that their headers give away, and six that are damaged behind them."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(8):
        Image.effect_noise((64, 64), 60).convert("RGB").save(folder / f"{number}.png")
    whole = (folder / "0.png").read_bytes()
    for number in range(2, 8):
        (folder / f"{number}.png").write_bytes(whole[: len(whole) // 2])
    for number in range(5):
        (folder / f"not-{number}.png").write_bytes(whole[:20])
    (tmp_path / "e.json").write_text(json.dumps(["C2d_3_8_4_4", "SiLU", "C2d_8_4_1"]))
    (tmp_path / "d.json").write_text(json.dumps(["C2d_2_8_1", "SiLU", "UpS_4", "C2d_8_3_1"]))
    (tmp_path / "flexvae.toml").write_text(CONFIG)
    return folder


def test_every_command_stops_where_there_are_too_many(photos: Path, flexvae: Any, tmp_path: Path) -> None:
    config, allowed = tmp_path / "flexvae.toml", ("--set", "data.max_bad=0.9")
    done = flexvae("train", "--config", config)
    assert done.exit_code == Exit.DATA, done.stderr
    assert "11 of 13 files cannot be used" in done.stderr
    assert "--set data.max_bad=0.85" in done.stderr
    assert len((tmp_path / "run/bad_files.jsonl").read_text().splitlines()) == 11
    assert flexvae("train", "--config", config, "--resume", *allowed).exit_code == 0

    for command in ("infer", "encode"):
        arguments = (command, tmp_path / "run", photos, tmp_path / command, "--workers", "0")
        done = flexvae(*arguments)
        assert done.exit_code == Exit.DATA, done.stderr
        assert "`--max-bad 0.85`" in done.stderr
        done = flexvae(*arguments, "--max-bad", "0.9", *(["--overwrite"] * (command == "infer")))
        assert done.exit_code == 0, done.stderr
        assert len((tmp_path / command / "bad_files.jsonl").read_text().splitlines()) == 11
    arguments = ("eval", tmp_path / "run", photos, "--workers", "0")
    assert flexvae(*arguments).exit_code == Exit.DATA
    assert len(json.loads(flexvae(*arguments, "--max-bad", "1", "--json").stdout)["images"]) == 2
