"""What `flexvae train` says while it trains: lines for the terminal and the log, and the progress bar."""

from __future__ import annotations

import contextlib
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flexvae_cli import ui
from flexvae_cli.errors import FlexVAEError
from flexvae_cli.paths import shown

if TYPE_CHECKING:
    from collections.abc import Generator

    from flexvae_cli.engine.events import Event
    from flexvae_cli.engine.rundir import RunDirectory


@dataclass
class Pace:
    """How long the rest takes, if it goes on as it went in this session."""

    start: int = 0
    steps: int = 0
    began: float = 0.0

    def begin(self, start: int, steps: int) -> None:
        """The clock starts at step `start` of `steps`."""
        self.start, self.steps, self.began = start, steps, time.monotonic()

    def left(self, step: int) -> str:
        """`1:02:03 left` behind `step`; nothing where there is nothing to go by, or nothing left."""
        done, rest = step - self.start, self.steps - step
        if done <= 0 or rest <= 0:
            return ""
        seconds = round((time.monotonic() - self.began) / done * rest)
        return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d} left"


def follow(events: Generator[Event], run: RunDirectory, config: Path, steps: int) -> tuple[dict[str, object], int]:
    """Tell the terminal and the run's log of all events; returns the last metrics and the signal that stopped it.

    Where a progress bar is drawn, it carries the numbers of the last steps; elsewhere each gets a line.
    """
    from flexvae_cli.engine.events import Advanced, Finished, Logged, Started, Validated
    from flexvae_cli.engine.scalars import short_line

    summary: dict[str, object] = {"run": str(run.path)}
    signal, pace = 0, Pace()
    with contextlib.closing(events), _noting_its_end(run), ui.progress(steps, "steps") as advance:
        for event in events:
            if isinstance(event, Started):
                pace.begin(event.step, event.max_steps)
                advance(event.step, total=event.max_steps)
            elif isinstance(event, Advanced):
                advance(event.step)
            elif isinstance(event, Logged):
                advance(event.step, short_line(event.values))
            elif isinstance(event, Finished):
                summary["step"], signal = event.step, event.signal
            if isinstance(event, Logged | Validated):
                kind = "train" if isinstance(event, Logged) else "validation"
                summary[kind] = {"step": event.step, **event.values}
            for line in told(event, run, config, pace):
                run.append_log(line)
                if not (isinstance(event, Logged) and ui.output.bar is not None):
                    ui.say(line)
    return summary, signal


@contextlib.contextmanager
def _noting_its_end(run: RunDirectory) -> Generator[None]:
    """Whoever reads the log later should find what ended the run."""
    try:
        yield
    except FlexVAEError as error:
        with contextlib.suppress(FlexVAEError):  # the log may be what cannot be written
            run.append_log(f"ended by an error: {error.problems[0].what}")
        raise


def told(event: Event, run: RunDirectory, config: Path, pace: Pace) -> list[str]:
    """What the terminal and the log say of an event."""
    from flexvae_cli.engine import events as e
    from flexvae_cli.engine.scalars import line

    match event:
        case e.Started():
            held = f"{event.validation_images} held out" if event.validation_images else "none held out"
            verb = f"continuing at step {event.step}" if event.resumed else "starting"
            return [
                f"{verb}: {shown(run.path)}",
                f"{event.parameters:,} parameters, {event.training_images} images ({held}), {event.device}, "
                f"{event.max_steps:,} steps, {event.steps_per_epoch:,} to an epoch",
            ]
        case e.Noticed():
            return [f"note: {event.text}"]
        case e.BadFileMet():
            return [f"skipped: {event.name} {event.reason}"]
        case e.Skipped():
            what = f"the update of step {event.step} was skipped: a number was not finite"
            return [f"{what}; its samples: {shown(event.path)}"]
        case e.Logged():
            left = pace.left(event.step)
            return [f"step {event.step:>6}  {line(event.values)}" + (f"  {left}" if left else "")]
        case e.Validated():
            return [f"validation at step {event.step}:  {line(event.values, 'validation')}"]
        case e.Finished(signal=0):
            spent = f"done: {event.step:,} steps, {event.seconds:.0f} s in this session"
            return [f"{spent}; next: flexvae report {shown(run.path)}, flexvae infer {shown(run.path)} INPUT OUTPUT"]
        case e.Finished():
            return [f"stopped at step {event.step}, saved; continue with: {_again(config)}"]
        case _:
            return []


def _again(config: Path) -> str:
    """The command that goes on: the one that was given, with --resume."""
    if sys.argv[1:2] != ["train"]:  # not from a command line
        return f"flexvae train --config {config} --resume"
    resume = [] if "--resume" in sys.argv else ["--resume"]
    return shlex.join(["flexvae", *sys.argv[1:], *resume])
