"""Data workers that are killed, give up or hang: one of them costs a line, two the run, none a bit of the result."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from flexvae_cli.config import load_config
from flexvae_cli.engine import events as e
from flexvae_cli.engine.checkpoint import newest_checkpoint
from flexvae_cli.engine.data.dataset import MicroBatch, Sample, TrainingImages
from flexvae_cli.engine.data.loader import Rest, training_batches, whole_images
from flexvae_cli.engine.data.preparation import Preparation
from flexvae_cli.engine.data.sampler import MicroBatches
from flexvae_cli.engine.data.sources import list_images
from flexvae_cli.engine.data.whole import WholeImages
from flexvae_cli.engine.data.workers import Notes
from flexvae_cli.engine.interrupt import Stopped
from flexvae_cli.engine.loop import train
from flexvae_cli.engine.rundir import RunDirectory
from flexvae_cli.engine.starting import gather
from flexvae_cli.errors import DataError, Exit
from flexvae_cli.plan import make_plan

ITEMS = list_images("builtin:scenery/val")
SAMPLER = MicroBatches(10, 4, 3, seed=0, start_step=0, max_steps=7)  # the last step of an epoch has 2 samples
PREPARATION = Preparation((3, 16, 16))
HANGING = ("hang", "stop")
FATAL = 7  # the image at which something happens to the worker


class Treacherous(TrainingImages):
    """Something happens to the worker that reads a certain image, so many times.

    Args:
        how: `kill`, `exit`, `hang` or `stop`.
        marks: a folder that counts the times.
        times: after so many the image is read like any other.
    """

    def __init__(self, how: str, marks: Path, times: int) -> None:
        super().__init__(ITEMS, PREPARATION, seed=0)
        self.how, self.marks, self.times = how, marks, times

    def __getitem__(self, at: tuple[int, int]) -> Sample | DataError:
        if at == (1, FATAL) and len(list(self.marks.iterdir())) < self.times:
            (self.marks / str(os.getpid())).touch()
            if self.how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            elif self.how == "exit":
                os._exit(3)
            elif self.how == "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            else:
                time.sleep(3600)
        return super().__getitem__(at)


def stream(marks: Path, how: str, times: int, *, workers: int = 2, **options: Any) -> Iterator[MicroBatch]:
    timeout = 4 if how in HANGING else 120
    return training_batches(Treacherous(how, marks, times), SAMPLER, workers=workers, timeout=timeout, **options)


@pytest.fixture
def marks(tmp_path: Path) -> Path:
    (tmp_path / "marks").mkdir()
    return tmp_path / "marks"


@pytest.fixture(scope="module")
def undisturbed() -> list[MicroBatch]:
    return list(training_batches(TrainingImages(ITEMS, PREPARATION, seed=0), SAMPLER, workers=0))


def same(first: list[MicroBatch], second: list[MicroBatch]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a.x, b.x) and torch.equal(a.places, b.places) for a, b in zip(first, second, strict=True)
    )


def test_the_rest_is_what_the_sampler_yields_behind_any_number_of_batches() -> None:
    whole = list(SAMPLER)
    assert [len(b) for b in whole] == [2, 1, 1, 2, 1, 1, 1, 1] * 2 + [2, 1, 1]
    for done in range(len(whole) + 2):
        assert list(Rest(SAMPLER, done)) == whole[done:]


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("kill", r"a data worker died \(process \d+, SIGKILL\) while it read NAME; all were started anew"),
        ("exit", r"a data worker died \(process \d+, exit code 3\) while it read NAME; all were started anew"),
        ("hang", r"the data workers gave no batch for 4 s while they read (\S+, )?NAME; all were started anew"),
        ("stop", r"the data workers gave no batch for 4 s while they read (\S+, )?NAME; all were started anew"),
    ],
)
def test_one_that_is_lost_costs_a_line(marks: Path, undisturbed: list[MicroBatch], how: str, said: str) -> None:
    told: list[str] = []
    assert same(list(stream(marks, how, 1, tell=told.append)), undisturbed)
    assert len(told) == 1
    assert re.match(said.replace("NAME", ITEMS[FATAL].name), told[0]), told
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("how", ["kill", "hang"])
def test_the_second_one_ends_the_run(marks: Path, undisturbed: list[MicroBatch], how: str) -> None:
    got: list[MicroBatch] = []
    with pytest.raises(DataError) as caught:
        got.extend(batch for batch in stream(marks, how, 2, workers=1))
    assert caught.value.code == Exit.DATA
    assert ITEMS[FATAL].name in str(caught.value)
    assert "try data.workers = 0" in str(caught.value)
    assert same(got, undisturbed[: len(got)])
    assert multiprocessing.active_children() == []


def test_a_signal_ends_the_wait_for_a_worker_that_hangs(marks: Path) -> None:
    def check() -> None:
        if any(marks.iterdir()):
            raise Stopped

    with pytest.raises(Stopped):
        list(stream(marks, "hang", 9, workers=1, check=check))
    assert multiprocessing.active_children() == []


@pytest.mark.skipif(not os.environ.get("FLEXVAE_NIGHTLY"), reason="torch waits ten seconds for it")
def test_an_abandoned_stream_leaves_no_process_not_even_one_that_hangs(marks: Path) -> None:
    batches = stream(marks, "stop", 1, workers=2)
    next(batches)
    deadline = time.monotonic() + 60
    while not any(marks.iterdir()) and time.monotonic() < deadline:
        next(batches)
    batches.close()  # type: ignore[attr-defined]
    assert multiprocessing.active_children() == []


def test_whole_images_go_on_as_well() -> None:
    told: list[str] = []
    pairs = whole_images(WholeImages(ITEMS * 4, 3), workers=2, tell=told.append)
    names = [next(pairs)[0][0].name]
    os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)
    names += [item.name for (item, _), _ in pairs]
    assert names == [item.name for item in ITEMS * 4]
    assert len(told) == 1
    assert "SIGKILL" in told[0]


def test_notes_can_be_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    notes = Notes(TrainingImages(ITEMS, PREPARATION, seed=0), 2)
    assert notes.names() == ["", ""]
    assert torch.equal(notes[0, 1].x, notes.dataset[0, 1].x)


CONFIG = """
model = { encoder = "e.json", decoder = "d.json" }
data = { source = "builtin:scenery", input = "3x16x16", validation = 0, workers = 2 }
train = { run_dir = "run", max_steps = 12, batch_size = 4, accumulate = 2, preview_every = 0, device = "cpu" }
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "c.toml").write_text(CONFIG)
    (tmp_path / "e.json").write_text(json.dumps(["C2d_3_8_4_4", "SiLU", "C2d_8_4_1"]))
    (tmp_path / "d.json").write_text(json.dumps(["C2d_2_8_1", "SiLU", "UpS_4", "C2d_8_3_3_1_1"]))
    return tmp_path


def trained(project: Path, *overrides: str, kill_at: int = -1) -> tuple[dict[str, torch.Tensor], list[str]]:
    """The last weights of a run whose first data worker is killed behind a step, and what was noticed."""
    plan, notices = make_plan(load_config(project / "c.toml", overrides)), list[str]()
    with RunDirectory(plan.settings.train.run_dir) as held:
        for event in train(plan, gather(plan), held, resume=False):
            if isinstance(event, e.Noticed):
                notices.append(event.text)
            if isinstance(event, e.Advanced) and event.step == kill_at:
                os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)
        checkpoint = newest_checkpoint(held.path)[0]
    assert checkpoint is not None
    assert checkpoint.step == 12
    return checkpoint.weights(), notices


def test_a_run_that_loses_a_worker_ends_with_the_same_weights(project: Path) -> None:
    whole, silent = trained(project, "data.workers=0", f"train.run_dir={project / 'whole'}")
    disturbed, told = trained(project, kill_at=3)
    assert silent == []
    assert len(told) == 1
    assert "SIGKILL" in told[0]
    assert disturbed.keys() == whole.keys()
    assert all(torch.equal(disturbed[name], whole[name]) for name in whole)
