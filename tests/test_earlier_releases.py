"""Runs that earlier releases left behind can be used, measured and continued."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from make_run_fixture import RUNS, STEPS, answers

from flexvae_cli.engine.checkpoint import newest_checkpoint

RELEASES = sorted(path.name for path in RUNS.iterdir())


@pytest.fixture(params=RELEASES)
def left(request, tmp_path, monkeypatch) -> Path:
    """A copy of what a release left, as the working directory."""
    folder = tmp_path / request.param
    shutil.copytree(RUNS / request.param, folder, symlinks=True)
    monkeypatch.chdir(folder)
    return folder


def test_its_model_gives_what_it_gave(left):
    wanted, found = json.loads((left / "answers.json").read_text()), answers(left / "run")
    for name, values in wanted.items():
        torch.testing.assert_close(torch.tensor(found[name]), torch.tensor(values), rtol=1e-4, atol=1e-5)


def test_it_goes_on(left, flexvae):
    before, problems = newest_checkpoint(left / "run")
    assert before is not None
    assert not problems
    ended = flexvae("train", "--config", "flexvae.toml", "--resume", "--set", f"train.max_steps={STEPS + 2}")
    assert ended.exit_code == 0, ended.stderr
    assert f"continuing at step {STEPS}" in ended.stderr
    after, _ = newest_checkpoint(left / "run")
    assert after is not None
    assert after.step == STEPS + 2
    assert after.training().keys() >= before.training().keys()
