"""A file that grows line by line, and waits where the disk is full."""

from __future__ import annotations

import os
from pathlib import Path

from flexvae_cli.engine.files import DiskFullError, write_all, writing

APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)


class LineFile:
    """Lines are written whole or not at all; those that a full disk has no room for are held until it has.

    Args:
        path: the file, created with the first line.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._held = b""

    def add(self, line: str) -> None:
        """Write a line behind those that are held; what UTF-8 lacks (a file name can hold it) is escaped.

        Raises:
            ResourceError: the file cannot be written, for another reason than a full disk.
        """
        self._held += (line + "\n").encode("utf-8", "backslashreplace")
        try:
            self.flush()
        except DiskFullError:
            return  # a checkpoint will tell of it, and wait

    def flush(self) -> None:
        """Write what is held.

        Raises:
            DiskFullError: there is still no room.
            ResourceError: the file cannot be written.
        """
        if not self._held:
            return
        with writing(self.path, len(self._held)):
            descriptor = os.open(self.path, APPEND, 0o666)
            try:
                size = os.fstat(descriptor).st_size
                try:
                    write_all(descriptor, self._held)
                except OSError:
                    os.ftruncate(descriptor, size)
                    raise
            finally:
                os.close(descriptor)
        self._held = b""
