"""Signals as a flag that the loop reads between steps."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Self

STOPPING = (signal.SIGINT, signal.SIGTERM)


class Interrupt:
    """While held, SIGINT and SIGTERM are remembered in `signal` instead of raised; a second one acts at once."""

    def __init__(self) -> None:
        self.signal = 0
        self._before: dict[int, object] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # Python handles signals there only
            self._before = {number: signal.signal(number, self._remember) for number in STOPPING}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _remember(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self.signal = number
        for each in STOPPING:
            signal.signal(each, signal.SIG_DFL)
