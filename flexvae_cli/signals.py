"""Signals that end a program: by way of all clean-up, with the signal's own exit code, without a traceback.

Training and encoding take over while they work (`engine/interrupt.py`); this is for the time before and after.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

from flexvae_cli.errors import Exit, Terminated

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

SOON = 0.01  # seconds
ENDING = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name)]  # Windows lacks the other


@contextmanager
def ending_in_order() -> Iterator[None]:
    """SIGTERM, and SIGUSR1 as batch systems send it ahead of that, end what goes on inside as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():  # Python handles signals there only
        yield
        return
    before = {number: signal.getsignal(number) for number in ENDING}
    mine = [number for number, handler in before.items() if handler is signal.SIG_DFL]  # not where it is ignored
    passed_on = sys.unraisablehook

    def unraisable(args: UnraisableHookArgs) -> None:
        """An interruption that came while an object was given up, where nothing can be raised, is sent anew."""
        if isinstance(args.exc_value, KeyboardInterrupt | SystemExit):
            _send_soon(signal.SIGINT if isinstance(args.exc_value, KeyboardInterrupt) else signal.SIGTERM)
        else:
            passed_on(args)

    sys.unraisablehook = unraisable
    try:
        for number in mine:
            signal.signal(number, _end)
        yield
    finally:
        for number in mine:
            signal.signal(number, before[number])
        sys.unraisablehook = passed_on


def _send_soon(number: int) -> None:
    """Send this process a signal when its main thread is out of here."""
    later = threading.Timer(SOON, os.kill, (os.getpid(), number))
    later.daemon = True
    try:
        later.start()
    except (KeyboardInterrupt, SystemExit):  # a slow machine: it came before this returned, and would be lost again
        _send_soon(number)


def _end(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    raise Terminated(Exit.TERMINATED)
