"""Runs that released versions wrote load, give the numbers that they gave, and go on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from make_run_fixture import RUNS, STEPS, answers

from flexvae_cli.engine.checkpoint import newest_checkpoint


@pytest.fixture(params=sorted(path.name for path in RUNS.iterdir()))
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of what a version wrote."""
    return Path(shutil.copytree(RUNS / request.param, tmp_path / "kept", symlinks=True))


def test_its_model_gives_the_same_numbers(kept):
    wanted = json.loads((kept / "answers.json").read_text())
    given = answers(kept / "run")
    assert given.keys() == wanted.keys()
    assert all(given[name] == pytest.approx(wanted[name], abs=1e-4) for name in wanted)


def test_it_is_small():
    for folder in RUNS.iterdir():
        assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 64_000


def test_its_training_goes_on(kept, flexvae, monkeypatch):
    monkeypatch.chdir(kept)
    before = newest_checkpoint(kept / "run")[0]
    assert before is not None
    assert before.step == STEPS
    ended = flexvae("train", "--resume", "--set", f"train.max_steps={STEPS + 2}")
    assert ended.exit_code == 0, ended.stderr
    assert f"continuing at step {STEPS}" in ended.stderr
    after = newest_checkpoint(kept / "run")[0]
    assert after is not None
    assert after.step == STEPS + 2
    assert after.training().keys() == before.training().keys()


def test_another_discriminator_is_refused(kept, flexvae, monkeypatch):
    monkeypatch.chdir(kept)
    structure = kept / "discriminator.json"
    structure.write_text(structure.read_text().replace("SiLU", "GN_1_4"))
    ended = flexvae("train", "--resume")
    assert ended.exit_code == 2
    said = "adversarial.discriminator: the structure of the discriminator is not the one that the run was started with"
    assert said in ended.stderr
