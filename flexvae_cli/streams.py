"""stdin, stdout and stderr as a program needs them: there, and patient with a reader that goes away."""

from __future__ import annotations

import io
import os
import sys
from typing import TYPE_CHECKING, TextIO

from flexvae_cli.errors import ResourceError

if TYPE_CHECKING:
    from typing_extensions import Buffer

STDOUT, STDERR = 1, 2


class PatientFile(io.FileIO):
    """stdout or stderr. Where the reader is gone (`| head`), or where talk cannot be written, the rest goes nowhere.

    Work goes on though nobody listens. A result that cannot be written for another reason is an error.

    Raises:
        ResourceError: on writing: stdout is on a full disk, or broken.
    """

    def write(self, data: Buffer, /) -> int:
        """Write what can be written; returns how many bytes that was."""
        try:
            return super().write(data)
        except OSError as error:
            _point_at_nothing(self.fileno())  # else what is still in a buffer would fail again
            if self.fileno() == STDERR or isinstance(error, BrokenPipeError):
                return memoryview(data).nbytes
            raise ResourceError(f"cannot be written: {error.strerror}", where="stdout") from error


def open_streams() -> None:
    """Open what the caller closed (`>&-`) on nothing, and make stdout and stderr patient.

    No file that is opened later can then take the number of a standard stream, and get what is meant for the terminal.
    """
    if os.name == "nt":  # a console is no file there
        return
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= STDERR:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    if sys.stdout is sys.__stdout__:  # unless somebody reads along in this process
        sys.stdout = _patient(sys.stdout, STDOUT)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _patient(sys.stderr, STDERR)


def _patient(stream: TextIO | None, descriptor: int) -> TextIO:
    return io.TextIOWrapper(
        io.BufferedWriter(PatientFile(descriptor, "w", closefd=False)),
        encoding=getattr(stream, "encoding", "utf-8"),
        errors=getattr(stream, "errors", "backslashreplace"),
        line_buffering=getattr(stream, "line_buffering", False),
    )


def _point_at_nothing(descriptor: int) -> None:
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, descriptor)
    os.close(nothing)
