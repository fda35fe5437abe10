"""Signals as a flag that work reads where it can stop: between steps, between batches, while it waits."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Self, TypeVar

STOPPING = (signal.SIGINT, signal.SIGTERM)
WARNING = getattr(signal, "SIGUSR1", signal.SIGTERM)  # batch systems send it ahead of SIGTERM; Windows has none
Some = TypeVar("Some")


class Stopped(Exception):  # noqa: N818 - nothing went wrong
    """A signal asked to stop: what was going on is given up, what was done before stands."""


class Interrupt:
    """While held, a signal that asks to stop is remembered in `signal`, by its number, instead of raised.

    SIGINT and SIGTERM are remembered once; a second one acts at once. SIGUSR1 counts as a SIGTERM that may be followed
    by another: it leaves the two as they are.

    Args:
        echo: seconds within which a second signal is taken for the first one, sent on by a launcher that got it too.
    """

    def __init__(self, echo: float = 0.0) -> None:
        self.signal = 0
        self._echo = echo
        self._came = 0.0  # when the first of STOPPING came, where there may be an echo
        self._before: dict[int, object] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # Python handles signals there only
            self._before = {number: signal.signal(number, self._remember) for number in (*STOPPING, WARNING)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def check(self) -> None:
        """Raise `Stopped` where a signal came."""
        if self.signal:
            raise Stopped

    def until(self, things: Iterable[Some]) -> Iterator[Some]:
        """The things, one by one, until a signal comes: then `Stopped`."""
        for thing in things:
            self.check()
            yield thing

    def _remember(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self.signal = self.signal or (signal.SIGTERM if number == WARNING else number)
        if number == WARNING:
            return
        now = time.monotonic()
        if self._echo and now - (self._came or now) < self._echo:
            self._came = self._came or now
            return
        for each in STOPPING:
            signal.signal(each, signal.SIG_DFL)
        if self._came:
            signal.raise_signal(number)
