"""What a run writes down of its events."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator

import pytest
import torch.utils.tensorboard

from flexvae_cli.engine.events import BadFileMet, Event, Logged, Noticed, Started, Validated
from flexvae_cli.engine.records import recorded
from flexvae_cli.engine.rundir import RunDirectory
from flexvae_cli.errors import DivergedError

STARTED = Started(0, 10, 5, "cpu", 1, 1, 1, resumed=False)
EVENTS: list[Event] = [
    STARTED,
    BadFileMet("a.png", "is broken"),
    BadFileMet("a.png", "is broken"),
    Logged(1, {"loss": 0.5}),
    Validated(1, {"psnr": 20.0}),
]


@pytest.fixture
def run(tmp_path) -> Iterator[RunDirectory]:
    with RunDirectory(tmp_path / "run") as held:
        held.write_config(
            {}
        )  # else it is no run yet, and goes at the end: under a writer that a test keeps from closing
        yield held


@pytest.fixture
def closed(monkeypatch) -> list[str]:
    """The TensorBoard writers that were closed."""
    found: list[str] = []
    close = torch.utils.tensorboard.SummaryWriter.close
    monkeypatch.setattr(
        torch.utils.tensorboard.SummaryWriter, "close", lambda self: (found.append(self.log_dir), close(self))
    )
    return found


def test_events_are_written_down_and_passed_on(run, closed):
    assert list(recorded(EVENTS, run)) == EVENTS
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    assert all(line.pop("time") > 1.7e9 for line in lines)  # seconds since 1970
    assert lines == [
        {"step": 1, "kind": "train", "loss": 0.5},
        {"step": 1, "kind": "validation", "psnr": 20.0},
    ]
    assert run.bad_files.read_text() == '{"name": "a.png", "reason": "is broken"}\n'
    assert closed == [str(run.path / "tensorboard")]
    drawn = b"".join(p.read_bytes() for p in (run.path / "tensorboard").iterdir())
    assert b"train/loss" in drawn
    assert b"validation/psnr" in drawn


def diverging() -> Iterator[Event]:
    yield from EVENTS
    raise DivergedError("the loss is not finite")


def test_an_abnormal_end_loses_no_drawn_numbers(run, closed):
    events = recorded(diverging(), run)
    with pytest.raises(DivergedError):
        list(events)
    assert closed == [str(run.path / "tensorboard")]


def test_a_reader_that_stops_loses_no_drawn_numbers(run, closed):
    events = recorded(EVENTS, run)
    next(events)
    events.close()
    assert closed == [str(run.path / "tensorboard")]


@pytest.mark.parametrize(("method", "told"), [("add_scalar", 1), ("close", 0)])
def test_a_full_disk_under_tensorboard_ends_tensorboard_and_not_the_run(run, monkeypatch, method, told):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch.utils.tensorboard.SummaryWriter, method, full)
    found = list(recorded(EVENTS, run))
    notices = [event.text for event in found if isinstance(event, Noticed)]
    assert [event for event in found if not isinstance(event, Noticed)] == EVENTS
    assert len(notices) == told
    assert all("nothing more for TensorBoard: no space left" in text for text in notices)
    assert len(run.metrics.read_text().splitlines()) == 2
