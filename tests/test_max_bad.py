"""Some unusable files are put up with; so many that the data cannot be what it was taken for are not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from flexvae_cli.engine.checkpoint import newest_checkpoint
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
        done = flexvae(*arguments, "--max-bad", "0.9")  # the record of the bad files is not in the way
        assert done.exit_code == 0, done.stderr
        assert len((tmp_path / command / "bad_files.jsonl").read_text().splitlines()) == 11
    arguments = ("eval", tmp_path / "run", photos, "--workers", "0")
    assert flexvae(*arguments).exit_code == Exit.DATA
    assert len(json.loads(flexvae(*arguments, "--max-bad", "1", "--json").stdout)["images"]) == 2
    for command, more, files in (
        ("stats", (photos, "--workers", "0"), 13),
        ("quantize", (photos, "--bits", "16", "--workers", "0"), 13),
        ("graft", (tmp_path / "e.json", "-o", tmp_path / "grafted", "--data", photos, "--limit", "13"), 13),
    ):
        done = flexvae(command, tmp_path / "run", *more)
        assert done.exit_code == Exit.DATA, done.stderr
        assert f"11 of {files} files cannot be used" in done.stderr
        done = flexvae(command, tmp_path / "run", *more, "--max-bad", "0.95")
        assert done.exit_code == 0, done.stderr


MIDDLE = """
[model]
encoder = "e.json"
decoder = "d.json"
[data]
source = "many"
input = "3x8x8"
validation = "held-out"
workers = 0
[optimizer]
lr = 1e-3
[schedule]
name = "plateau"
patience = 0
[ema]
decay = 0.9
[train]
run_dir = "run"
max_steps = 20
batch_size = 2
log_every = 7
validate_every = 3
preview_every = 9
keep_best = "psnr"
device = "cpu"
"""


@pytest.fixture
def project(photos: Path, tmp_path: Path) -> Path:
    """20 photographs to train on and 12 that are damaged behind their headers; 3 held out, and one that is damaged."""
    for name, sound, damaged in (("many", 20, 12), ("held-out", 3, 1)):
        (tmp_path / name).mkdir()
        for number in range(sound + damaged):
            content = (photos / f"{number % 2}.png").read_bytes()
            path = tmp_path / name / f"{name}-{number}.png"
            path.write_bytes(content if number < sound else content[: len(content) // 2])
    (tmp_path / "flexvae.toml").write_text(MIDDLE)
    return tmp_path


def learned(run: Path) -> tuple[int, dict[str, str], str]:
    """The newest step of a run, the sha256 of what it has learned, and its best step."""
    found, damaged = newest_checkpoint(run)
    assert found is not None
    assert not damaged
    state = json.loads((found.path / "state.json").read_text())
    digests = {name: each["sha256"] for name, each in state["files"].items() if name.endswith(".safetensors")}
    return found.step, digests, (run / "best").resolve().name


def validations(run: Path) -> list[tuple[int, float]]:
    """The step and the PSNR of each."""
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row["psnr"]) for row in found if row["kind"] == "validation"]


def test_too_many_in_the_middle_cost_no_step(project: Path, flexvae: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was trained is saved, and a run that then puts up with more ends as if it had from the start."""
    monkeypatch.chdir(project)
    assert flexvae("train", "--set", "train.run_dir=whole", "--set", "data.max_bad=1").exit_code == 0
    done = flexvae("train")
    assert done.exit_code == Exit.DATA, done.stderr
    stopped, _, _ = learned(project / "run")
    assert 4 < stopped < 20
    assert f"goes on without them; step {stopped} is saved, and --resume goes on from there" in done.stderr
    told = [json.loads(line)["name"] for line in (project / "run/bad_files.jsonl").read_text().splitlines()]
    assert len(set(told)) == len(told) > FEW
    assert f"{len(told)} of 36 files cannot be used, more than 0.01 of them" in done.stderr
    assert all(done.stderr.count(f"skipped: {name} is truncated") == 1 for name in told)
    assert f"ended by an error: {len(told)} of 36 files" in (project / "run/log.txt").read_text()
    assert stopped % 3 == 0  # where it validates as well
    assert validations(project / "run") == validations(project / "whole")[: stopped // 3]
    shutil.copytree(project / "run", project / "mended", symlinks=True)

    assert flexvae("train", "--resume", "--set", "data.max_bad=1").exit_code == 0
    assert learned(project / "run") == learned(project / "whole")
    assert validations(project / "run") == validations(project / "whole")

    for name in told:
        shutil.copy(project / "many/many-0.png", project / name.rpartition("-")[0] / name)
    done = flexvae("train", "--resume", "--set", "train.run_dir=mended")
    assert done.exit_code == 0, done.stderr
    assert f"continuing at step {stopped}" in done.stderr
    assert learned(project / "mended")[0] == 20
