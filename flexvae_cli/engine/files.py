"""Files that outlive a crash: written beside their place, forced to disk, then renamed.

A process that is killed, a machine that loses power or a disk that fills up leaves the old state or the new one, never
a mixture. All writing goes through `write_new`, `replace_file` and `publish_directory`; a final name is never opened
for writing, and a link is never followed.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from flexvae_cli.errors import DISK_FULL, ResourceError

CHUNK = 1 << 24  # bytes handed to the system at a time
ROOM = "make room, or choose another place; what was there is intact"
CRASH_POINTS = (
    "file.write",  # before each write to a file
    "file.written",  # after each write to a file
    "file.fsync",  # the file is complete, not yet forced to disk
    "file.fsynced",  # the file is on disk
    "directory.rename",  # the directory is complete under its temporary name
    "directory.renamed",  # it has its final name, not yet forced to disk
    "directory.discard",  # before an old directory is given up
    "directory.discarded",  # it is renamed out of sight, its files still there
)
ORPHAN = re.compile(r"\.(tmp|del)-[0-9]+-.+")  # `.tmp-<pid>-<name>` is half written, `.del-<pid>-<name>` half removed
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
_hits: Counter[str] = Counter()


class DiskFullError(ResourceError):
    """There is no room for what was to be written; what was there before is intact."""


class Digest(NamedTuple):
    """What identifies a file's content."""

    sha256: str
    bytes: int


def crash_point(name: str) -> None:
    """Kills this process where the environment says `FLEXVAE_CRASH_AT=name`, or at the N-th passage with `name:N`.

    The tests of crash safety use it; `CRASH_POINTS` lists the names.
    """
    wanted, _, passage = os.environ.get("FLEXVAE_CRASH_AT", "").partition(":")
    if wanted == name:
        _hits[name] += 1
        if _hits[name] == int(passage or 1):
            os.kill(os.getpid(), signal.SIGKILL)


def write_new(path: Path, chunks: Iterable[bytes | memoryview]) -> Digest:
    """Creates `path`, writes the chunks and forces them to disk; the mode is 0666 less the umask.

    Raises:
        FileExistsError: the name is taken, be it by a link.
    """
    sha256, size = hashlib.sha256(), 0
    descriptor = os.open(path, _NEW_FILE, 0o666)
    try:
        for chunk in chunks:
            sha256.update(chunk)
            size += write_all(descriptor, chunk)
        crash_point("file.fsync")
        os.fsync(descriptor)
        crash_point("file.fsynced")
    finally:
        os.close(descriptor)
    return Digest(sha256.hexdigest(), size)


def write_all(descriptor: int, data: bytes | memoryview) -> int:
    """Writes all of `data` (bytes, or a view of bytes), however little goes at a time; returns its size."""
    rest = memoryview(data)
    while rest:
        crash_point("file.write")
        rest = rest[os.write(descriptor, rest[:CHUNK]) :]
        crash_point("file.written")
    return len(data)


def replace_file(path: Path, data: bytes) -> None:
    """Puts `data` in the place of `path` at one stroke."""
    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    try:
        write_new(temporary, [data])
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_directory(path.parent)


def fsync_directory(path: Path) -> None:
    """Forces the names in a directory to disk."""
    if os.name == "nt":  # Windows cannot open a directory; its file systems keep a journal of names
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_directory(path: Path) -> None:
    """Creates a directory, and those above it, so that it outlives a power loss."""
    if not path.is_dir():
        make_directory(path.parent)
        path.mkdir(exist_ok=True)
        fsync_directory(path.parent)


@contextmanager
def temporary_directory(path: Path) -> Iterator[Path]:
    """A new directory that is gone at the end, unless it was published under another name."""
    path.mkdir()
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def publish_directory(temporary: Path, final: Path) -> None:
    """Gives a directory whose files are on disk its final name, which must be free.

    Raises:
        OSError: `final` is a file, a link or a directory that is not empty.
    """
    fsync_directory(temporary)
    crash_point("directory.rename")
    temporary.rename(final)
    crash_point("directory.renamed")
    fsync_directory(final.parent)


def discard_directory(path: Path) -> None:
    """Removes a directory; its name goes first, so that no one sees it half removed."""
    grave = path.with_name(f".del-{os.getpid()}-{path.name}")
    shutil.rmtree(grave, ignore_errors=True)
    crash_point("directory.discard")
    path.rename(grave)
    crash_point("directory.discarded")
    shutil.rmtree(grave, ignore_errors=True)


def remove_orphans(directory: Path) -> None:
    """Removes what killed processes left behind in a directory that is ours and has no other writer now."""
    for orphan in [path for path in directory.iterdir() if ORPHAN.fullmatch(path.name)]:
        if orphan.is_dir() and not orphan.is_symlink():
            shutil.rmtree(orphan, ignore_errors=True)
        else:
            orphan.unlink(missing_ok=True)


@contextmanager
def writing(path: Path, needed: int = 0) -> Iterator[None]:
    """Turns the system's errors inside into ours; `needed` is the size in bytes of what is written.

    Raises:
        DiskFullError: the disk, the quota or the file size limit was reached.
        ResourceError: anything else that keeps `path` from being written.
    """
    try:
        yield
    except OSError as error:
        if error.errno in DISK_FULL:
            raise _disk_full(path, needed) from error
        raise ResourceError(f"cannot be written: {error.strerror or error}", where=str(path)) from error


def require_space(path: Path, needed: int, hint: str = ROOM) -> None:
    """Refuses at once what cannot fit.

    Raises:
        DiskFullError: fewer than `needed` bytes are free where `path` is or will be.
    """
    if _free_space(path) < needed:
        raise _disk_full(path, needed, hint)


def _free_space(path: Path) -> int:
    return shutil.disk_usage(next(p for p in [path.absolute(), *path.absolute().parents] if p.exists())).free


def _disk_full(path: Path, needed: int, hint: str = ROOM) -> DiskFullError:
    wanted = f"{needed / 1e6:,.1f} MB needed, " if needed else ""
    free = f"{_free_space(path) / 1e6:,.1f} MB free"
    return DiskFullError(f"no space left: {wanted}{free}", where=str(path), hint=hint)
