"""A run directory: where one training run keeps all it writes, and which one process holds at a time.

config.json        the resolved config
ckpt/step-00001234 checkpoints, see `checkpoint.py`
metrics.jsonl      one line of numbers per logged step
log.txt            what the terminal showed
previews/          pictures
bad_files.jsonl    input files that could not be used
.lock              who holds the directory
"""

from __future__ import annotations

import json
import math
import os
import re
import socket
import time
from datetime import datetime
from pathlib import Path
from typing import Any, Self

from flexvae_cli.engine.files import make_directory, remove_orphans, replace_file, write_all, writing
from flexvae_cli.engine.reading import json_bytes
from flexvae_cli.errors import ResourceError, UsageError

LINE_LIMIT = 1 << 20  # bytes; no line of metrics.jsonl is longer
_APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)
_locks: set[int] = set()  # descriptors of the locks that this process holds


class RunDirectory:
    """One run on disk: `with RunDirectory(path, resume=False) as run: ...` holds it until the end.

    Entering creates the directory where there is none, and removes what a killed process left half written. The lock is
    the kernel's: it is free again the moment its holder is gone, however it went.

    Args:
        path: the directory.
        resume: whether a run that is already there may be continued.

    Raises:
        UsageError: on entering: it holds a run and `resume` is off, or it holds something that is no run.
        ResourceError: on entering: another process holds it, or it cannot be written.
    """

    def __init__(self, path: Path, *, resume: bool = False) -> None:
        self.path = path
        self.config = path / "config.json"
        self.checkpoints = path / "ckpt"
        self.metrics = path / "metrics.jsonl"
        self.log = path / "log.txt"
        self.previews = path / "previews"
        self.bad_files = path / "bad_files.jsonl"
        self._resume = resume
        self._lock: int | None = None

    def __enter__(self) -> Self:
        with writing(self.path):
            make_directory(self.path)
            self._refuse_foreign()
            self._lock = _lock(self.path / ".lock")
            try:
                if not self._resume:
                    self._refuse_run()
                remove_orphans(self.path)
                make_directory(self.checkpoints)
                remove_orphans(self.checkpoints)
                make_directory(self.previews)
            except BaseException:
                self._release()
                raise
        return self

    def __exit__(self, *_: object) -> None:
        self._release()

    def write_config(self, config: dict[str, Any]) -> None:
        """Puts the resolved config on record, in the place of an earlier one."""
        data = json_bytes(config)
        with writing(self.config, len(data)):
            replace_file(self.config, data)

    def append_metrics(self, values: dict[str, Any]) -> None:
        """Adds one line to metrics.jsonl, all of it or nothing; numbers that are not finite become null."""
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        line = (json.dumps(finite, allow_nan=False) + "\n").encode()
        with writing(self.metrics, len(line)):
            descriptor = os.open(self.metrics, _APPEND, 0o666)
            try:
                size = os.fstat(descriptor).st_size
                try:
                    write_all(descriptor, line)
                except OSError:
                    os.ftruncate(descriptor, size)
                    raise
            finally:
                os.close(descriptor)

    def metrics_offset(self) -> int:
        """The size of metrics.jsonl in bytes, all of which is on disk by then; a checkpoint records it."""
        with writing(self.metrics):
            descriptor = os.open(self.metrics, _APPEND, 0o666)
            try:
                os.fsync(descriptor)
                return os.fstat(descriptor).st_size
            finally:
                os.close(descriptor)

    def rewind_metrics(self, offset: int) -> None:
        """Cuts metrics.jsonl back to the checkpoint that training continues from, and to whole lines.

        A file that is shorter than `offset` (someone cut it) keeps the whole lines that it has.
        """
        with writing(self.metrics):
            descriptor = os.open(self.metrics, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
            with os.fdopen(descriptor, "r+b") as file:
                end = min(offset, file.seek(0, os.SEEK_END))
                start = file.seek(max(0, end - LINE_LIMIT))
                file.truncate(start + file.read(end - start).rfind(b"\n") + 1)

    def _refuse_foreign(self) -> None:
        names = sorted(p.name for p in self.path.iterdir())
        for inner in (self.checkpoints, self.previews):
            if inner.is_symlink():
                raise UsageError("is a link; a run is not written through links", where=str(inner))
        if names and not {".lock", "config.json", "ckpt"} & set(names):
            raise UsageError(
                f"is not empty and holds no run (it has {names[0]!r})",
                where=str(self.path),
                hint="choose another train.run_dir",
            )

    def _refuse_run(self) -> None:
        steps = step_directories(self.checkpoints)
        if not steps and not self.config.exists():
            return
        state = f"at step {step_of(steps[0])}" if steps else "that has no checkpoint yet"
        raise UsageError(
            f"already holds a run {state}",
            where=str(self.path),
            hint="continue it with --resume, or choose another train.run_dir",
        )

    def _release(self) -> None:
        if self._lock in _locks:  # a forked child holds nothing
            os.ftruncate(self._lock, 0)
            os.close(self._lock)
            _locks.remove(self._lock)
        self._lock = None


def step_directories(checkpoints: Path) -> list[Path]:
    """The directories `step-%08d` below `checkpoints`, newest first, whatever is in them."""
    entries = checkpoints.iterdir() if checkpoints.is_dir() else ()
    found = [p for p in entries if step_of(p) is not None and p.is_dir() and not p.is_symlink()]
    return sorted(found, key=lambda p: int(p.name[5:]), reverse=True)


def step_of(path: Path) -> int | None:
    """The step that a checkpoint directory is named after; None where the name is another one."""
    match = re.fullmatch(r"step-([0-9]{8,18})", path.name)
    return int(match[1]) if match else None


def _lock(path: Path) -> int:
    """Takes the lock and leaves a note of who has it; returns the descriptor that keeps it."""
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
    note = {"pid": os.getpid(), "host": socket.gethostname(), "started": now}
    try:
        os.ftruncate(descriptor, 0)
        write_all(descriptor, json.dumps(note).encode())
    except OSError:
        os.close(descriptor)
        raise
    _locks.add(descriptor)
    return descriptor


def _holder(path: Path) -> str:
    for _ in range(20):  # the holder writes its note just after it took the lock
        try:
            note = json.loads(path.read_bytes()[:4096])
            return f"process {note['pid']} on {note['host']} since {note['started']}"
        except (ValueError, KeyError, TypeError):
            time.sleep(0.01)
    return "another process"


def _leave_locks_to_the_parent() -> None:
    # a worker that inherits the descriptor would keep the lock of a training process that was killed
    for descriptor in _locks:
        os.close(descriptor)
    _locks.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_locks_to_the_parent)
