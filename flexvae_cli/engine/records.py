"""What a run writes down of its events: metrics.jsonl, bad_files.jsonl, and TensorBoard where it is installed."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable
from contextlib import suppress
from importlib.util import find_spec
from typing import Any

from flexvae_cli.engine.events import BadFileMet, Event, Logged, Noticed, Started, Validated
from flexvae_cli.engine.files import DiskFullError, writing
from flexvae_cli.engine.rundir import RunDirectory


def recorded(events: Iterable[Event], run: RunDirectory) -> Generator[Event]:
    """Write events down, then pass them on: a checkpoint that follows then knows where its lines end.

    Raises:
        ResourceError: the run directory cannot be written. Of a full disk the next checkpoint tells.
    """
    boards = [_Board(run)] if find_spec("tensorboard") else []
    told = run.bad_file_names()
    try:
        for event in events:
            if isinstance(event, BadFileMet) and event.name not in told:
                told.add(event.name)
                run.append_bad_file(event.name, event.reason)
            elif isinstance(event, (Logged, Validated)):
                kind = "train" if isinstance(event, Logged) else "validation"
                run.append_metrics({"step": event.step, "kind": kind, "time": round(time.time(), 3), **event.values})
            for board in list(boards):
                try:
                    board.add(event)
                except DiskFullError as full:  # pictures of numbers that metrics.jsonl has
                    boards.remove(board)
                    yield Noticed(f"nothing more for TensorBoard: {full.problems[0].what}")
            yield event
    finally:
        for board in boards:
            with suppress(DiskFullError):
                board.close()


class _Board:
    """TensorBoard's file of a run."""

    def __init__(self, run: RunDirectory) -> None:
        self.folder = run.path / "tensorboard"
        self.writer: Any = None

    def add(self, event: Event) -> None:
        """Draw the numbers of an event; what a killed run drew beyond the step where this one starts is dropped."""
        with writing(self.folder):
            if isinstance(event, Started):
                from torch.utils.tensorboard import SummaryWriter

                self.writer = SummaryWriter(str(self.folder), purge_step=event.step + 1)
            elif isinstance(event, (Logged, Validated)):
                kind = "train" if isinstance(event, Logged) else "validation"
                for name, value in event.values.items():
                    self.writer.add_scalar(f"{kind}/{name}", value, event.step)

    def close(self) -> None:
        """Force what is drawn to the file."""
        if self.writer is not None:
            with writing(self.folder):
                self.writer.close()
