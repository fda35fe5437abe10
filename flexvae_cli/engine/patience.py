"""A full disk is waited for: someone may make room before the work since the last checkpoint is lost."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from typing import TypeVar

from flexvae_cli.engine.events import Noticed
from flexvae_cli.engine.files import DiskFullError

PAUSE = 5.0  # seconds between two tries
GLANCE = 0.2  # seconds between looks at whether a signal came
Made = TypeVar("Made")


def waiting_for_room(
    write: Callable[[], Made], seconds: float, *, stopped: Callable[[], object] = lambda: False, pause: float = PAUSE
) -> Generator[Noticed, None, Made]:
    """What `write` returns; while the disk is full it is tried again and again. Use as `made = yield from ...`.

    Args:
        write: writes all or nothing.
        seconds: how long to wait for room.
        stopped: whether a signal came that asks to stop: there is one more try then, and no more waiting.
        pause: seconds between two tries.

    Yields:
        One notice, when the waiting begins.

    Raises:
        DiskFullError: there is still no room.
    """
    deadline = time.monotonic() + seconds
    told = False
    while True:
        try:
            return write()
        except DiskFullError as full:
            left = deadline - time.monotonic()
            if left <= 0 or stopped():
                raise
            if not told:
                told = True
                what = f"{full.problems[0].where}: {full.problems[0].what}"
                yield Noticed(f"{what}; waiting up to {seconds:g} s for room")
        wake = time.monotonic() + min(left, pause)
        while (rest := wake - time.monotonic()) > 0 and not stopped():
            time.sleep(min(rest, GLANCE))
