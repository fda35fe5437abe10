"""The lock of a run directory: a file that the kernel locks.

Its first line says whose kind of file it is; while it is held, a second one says by whom.
"""

from __future__ import annotations

import json
import os
import socket
import time
from datetime import datetime
from pathlib import Path

from flexvae_cli import __version__
from flexvae_cli.engine.files import write_all
from flexvae_cli.errors import ResourceError

MARK = b'{"flexvae": '
FIRST_LINE = (json.dumps({"flexvae": __version__}) + "\n").encode()
_held: set[int] = set()  # descriptors of the locks that this process holds


def take_lock(path: Path) -> int:
    """Takes the lock and leaves a note of who has it; returns the descriptor that keeps it.

    Raises:
        ResourceError: another process holds it, or this system has no such locks.
        OSError: the file cannot be written.
    """
    try:
        import fcntl
    except ImportError as error:
        raise ResourceError(
            "a run directory needs POSIX file locks, which this system lacks", where=str(path.parent)
        ) from error
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise ResourceError(
            f"in use by {_holder(path)}",
            where=str(path.parent),
            hint="wait for it, stop it, or choose another train.run_dir",
        ) from error
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    holder = {"pid": os.getpid(), "host": socket.gethostname(), "started": now}
    try:
        os.ftruncate(descriptor, write_all(descriptor, FIRST_LINE + json.dumps(holder).encode()))
    except OSError:
        os.close(descriptor)
        raise
    _held.add(descriptor)
    return descriptor


def free_lock(descriptor: int | None) -> None:
    """Frees a lock that this process holds; a forked child holds none. The file stays."""
    if descriptor in _held:
        os.ftruncate(descriptor, len(FIRST_LINE))  # takes no room on a full disk
        os.close(descriptor)
        _held.remove(descriptor)


def is_ours(path: Path) -> bool:
    """Whether a file is such a lock, held or free."""
    if not path.is_file():  # a pipe would block
        return False
    with path.open("rb") as file:
        return file.read(len(MARK)) == MARK


def _holder(path: Path) -> str:
    for _ in range(20):  # the holder writes its note just after it took the lock
        try:
            note = json.loads(path.read_bytes()[:4096].partition(b"\n")[2])
            return f"process {note['pid']} on {note['host']} since {note['started']}"
        except (ValueError, KeyError, TypeError):
            time.sleep(0.01)
    return "another process"


def _leave_locks_to_the_parent() -> None:
    # a worker that inherits the descriptor would keep the lock of a training process that was killed
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_locks_to_the_parent)
