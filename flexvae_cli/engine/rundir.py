"""A run directory: where one training run keeps all it writes, and which one process holds at a time.

config.json        the resolved settings, and the version of FlexVAE that wrote them
ckpt/step-00001234 checkpoints, see `checkpoint.py`
metrics.jsonl      one line of numbers per logged step
metrics.csv        the same as a table, where the callback csv is switched on
log.txt            what the terminal showed
previews/          pictures
bad_files.jsonl    input files that could not be used
.lock              who holds the directory

A directory is taken for a run by what only a run has: such a config.json, such a lock, or a checkpoint. Any other one
that is not empty is somebody else's, and is left as it is.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import shutil
from pathlib import Path
from typing import Any, Self

from flexvae_cli import __version__
from flexvae_cli.engine.files import make_directory, remove_orphans, replace_file, writing
from flexvae_cli.engine.lines import APPEND, LineFile
from flexvae_cli.engine.lock import free_lock, is_ours, take_lock
from flexvae_cli.engine.reading import json_bytes, read_json
from flexvae_cli.errors import ModelError, ResourceError, UsageError

LINE_LIMIT = 1 << 20  # bytes; no line of metrics.jsonl is longer


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
        self._lines = {file: LineFile(file) for file in (self.metrics, self.log, self.bad_files)}
        self._lock_file = path / ".lock"
        self._resume = resume
        self._created = False
        self._lock: int | None = None

    def __enter__(self) -> Self:
        self._created = not self.path.exists()
        with writing(self.path):
            make_directory(self.path)
            self._refuse_foreign()
            self._lock = take_lock(self._lock_file)
            try:
                if not self._resume:
                    self._refuse_run()
                for directory in (self.path, self.checkpoints, self.previews):
                    make_directory(directory)
                    remove_orphans(directory)
            except BaseException:
                self._release()
                raise
        return self

    def __exit__(self, *_: object) -> None:
        for lines in self._lines.values():
            with contextlib.suppress(ResourceError):  # whatever ends here says more
                lines.flush()
        if self._created and not self.config.exists():
            shutil.rmtree(self.path, ignore_errors=True)  # it never became a run
        self._release()

    def write_config(self, settings: dict[str, Any]) -> None:
        """Puts the resolved settings on record, in the place of earlier ones."""
        data = json_bytes({"flexvae": __version__, "settings": settings})
        with writing(self.config, len(data)):
            replace_file(self.config, data)

    def append_metrics(self, values: dict[str, Any]) -> None:
        """Adds one line to metrics.jsonl; numbers that are not finite become null.

        Lines of all three files are written whole or not at all, and held back while the disk is full.
        """
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        self._lines[self.metrics].add(json.dumps(finite, allow_nan=False))

    def append_log(self, line: str) -> None:
        """Adds one line to log.txt."""
        self._lines[self.log].add(line)

    def append_bad_file(self, name: str, reason: str) -> None:
        """Adds an input file that could not be used to bad_files.jsonl."""
        self._lines[self.bad_files].add(json.dumps({"name": name, "reason": reason}))

    def bad_file_names(self) -> set[str]:
        """The files that bad_files.jsonl has already; lines that cannot be read do not count."""
        found = set()
        for line in self.bad_files.read_text("utf-8", "replace").splitlines() if self.bad_files.exists() else ():
            with contextlib.suppress(ValueError, KeyError, TypeError):
                found.add(str(json.loads(line)["name"]))
        return found

    def write_preview(self, name: str, data: bytes) -> Path:
        """Writes a picture to previews/, in the place of an earlier one; returns where it is."""
        path = self.previews / name
        with writing(path, len(data)):
            replace_file(path, data)
        return path

    def metrics_offset(self) -> int:
        """The size of metrics.jsonl in bytes, all of which is on disk by then; a checkpoint records it.

        Raises:
            DiskFullError: lines are held back for which there is no room.
        """
        self._lines[self.metrics].flush()
        with writing(self.metrics):
            descriptor = os.open(self.metrics, APPEND, 0o666)
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
        killed_at_once = names == [self._lock_file.name] and not self._lock_file.stat().st_size
        if names and not killed_at_once and not self._is_run():
            raise UsageError(
                f"is not empty and holds no run (it has {names[0]!r})",
                where=str(self.path),
                hint="choose another train.run_dir",
            )

    def _is_run(self) -> bool:
        if is_ours(self._lock_file) or any((p / "state.json").is_file() for p in step_directories(self.checkpoints)):
            return True
        try:
            return read_json(self.config).keys() == {"flexvae", "settings"}
        except ModelError:
            return False

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
        free_lock(self._lock)
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
