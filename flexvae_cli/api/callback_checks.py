"""The checks that `check_callback` runs."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from flexvae_cli.api import events as e


def callback_faults(make: Callable[[], Any]) -> Iterator[str]:
    """What is wrong with the observers of a callback: shown a run, the run that goes on, and one that is cut short.

    Args:
        make: makes one observer.
    """
    with TemporaryDirectory(prefix="flexvae-") as folder:
        run = Path(folder)
        whole, more = list(_run(run, 0, 4)), list(_run(run, 2, 6))
        for shown in (whole, more, whole[:1], []):
            before, said = repr(shown), io.StringIO()
            observer = make()
            if not callable(observer):
                yield f"the factory makes a {type(observer).__name__}, which cannot be called with an event"
                return
            with contextlib.redirect_stdout(said):
                for event in shown:
                    observer(event)
                getattr(observer, "close", lambda: None)()
            if repr(shown) != before:
                yield "it changes the events"
            if said.getvalue():
                yield "it prints on stdout, where results are; print to sys.stderr"


def _run(run: Path, start: int, end: int) -> Iterator[e.Event]:
    """Every kind of event, as a run from step `start` to `end` tells them; new numbers turn up on the way."""
    yield e.Started(start, end, 2, "cpu", 1000, 8, 2, resumed=start > 0, run=run)
    yield e.Noticed("something to know")
    yield e.BadFileMet("broken.png", "cannot be read")
    for step in range(start + 1, end + 1):
        if step == end - 1:
            yield e.Skipped(step, run / f"nan-step-{step:08d}.json")
        yield e.Advanced(step)
        extra = {"late": float("nan")} if step > 2 else {}
        yield e.Logged(step, {"loss": 1 / step, "lr": 1e-3, "images_per_second": 10.0, **extra})
    yield e.Validated(end, {"loss": 0.5, "psnr": 20.0, "ssim": 0.8})
    yield e.Previewed(end, run / "previews" / "step.png")
    yield e.Saved(end, run / "ckpt" / f"step-{end:08d}")
    yield e.Finished(end, 1.5)
