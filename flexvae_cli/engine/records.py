"""What a run writes down of its events: metrics.jsonl, bad_files.jsonl, and TensorBoard where it is installed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from typing import Any

from flexvae_cli.engine.events import BadFileMet, Event, Logged, Started, Validated
from flexvae_cli.engine.rundir import RunDirectory


def recorded(events: Iterable[Event], run: RunDirectory) -> Iterator[Event]:
    """Write events down, then pass them on: a checkpoint that follows then knows where its lines end."""
    board: Any = None
    told: set[str] = set()
    for event in events:
        if isinstance(event, Started):
            board = _tensorboard(run, event.step)
        elif isinstance(event, BadFileMet) and event.name not in told:
            told.add(event.name)
            _append_bad_file(run, event)
        elif isinstance(event, (Logged, Validated)):
            kind = "train" if isinstance(event, Logged) else "validation"
            run.append_metrics({"step": event.step, "kind": kind, **event.values})
            if board is not None:
                for name, value in event.values.items():
                    board.add_scalar(f"{kind}/{name}", value, event.step)
        yield event
    if board is not None:
        board.close()


def _append_bad_file(run: RunDirectory, event: BadFileMet) -> None:
    with run.bad_files.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"file": event.name, "reason": event.reason}) + "\n")


def _tensorboard(run: RunDirectory, step: int) -> Any:
    """A writer that drops what a killed run wrote beyond `step`, or None where TensorBoard is not installed."""
    if find_spec("tensorboard") is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(run.path / "tensorboard"), purge_step=step + 1)
