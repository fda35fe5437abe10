"""Paths of files inside a tar: whoever opens one reads a range of the tar, and nothing is unpacked."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from flexvae_cli.api.readers import BadFile


class Shard(NamedTuple):
    """A tar as it was when its headers were read.

    Attributes:
        path: where it lies.
        bytes: its size.
        mtime_ns: its time.
    """

    path: Path
    bytes: int
    mtime_ns: int


class Place(NamedTuple):
    """Where a file lies in a tar.

    Attributes:
        shard: the tar.
        start: of its content, in bytes.
        bytes: of its content.
        fault: why it cannot be read; empty where it can.
    """

    shard: Shard
    start: int = 0
    bytes: int = 0
    fault: str = ""


class BadMember(BadFile, OSError):  # noqa: N818 - as BadFile
    """What opening a bad member raises: an `OSError` too, as whoever opens a file expects."""


if TYPE_CHECKING:
    _Path = Path
else:
    _Path = type(Path())  # until Python 3.12 only the path of a system can be derived from


class Member(_Path):
    """The path `SHARD.tar/NAME`, which can be opened, measured and sent to workers as that of any file can.

    Paths made from it (its parent, say) are those of ordinary files. A library that is given it as text finds no file:
    see `handed`.

    Args:
        name: of the member; relative.
        place: where it lies.
    """

    __slots__ = ("_name", "_place")

    def __new__(cls, name: str, place: Place) -> Member:
        return super().__new__(cls, place.shard.path, name)

    def __init__(self, name: str, place: Place) -> None:
        if sys.version_info >= (3, 12):
            super().__init__(place.shard.path, name)
        self._name = name
        self._place = place

    def __reduce__(self) -> Any:
        return (Path, (str(self),)) if self.place is None else (Member, (self._name, self._place))

    def with_segments(self, *segments: str | os.PathLike[str]) -> Path:  # asked by Python 3.12 and later
        return Path(*segments)

    @property
    def parent(self) -> Path:  # type: ignore[override]  # a folder, or a tar, is no member
        return Path(os.path.dirname(self))  # noqa: PTH120 - pathlib's own would be a member before Python 3.12

    @property
    def place(self) -> Place | None:
        """Where it lies; None of a path made from a member's, which is of this class too until Python 3.12."""
        return getattr(self, "_place", None)

    def exists(self, *, follow_symlinks: bool = True) -> bool:  # noqa: ARG002 - pathlib's signature
        return self.place is not None or super().exists()

    def is_file(self, *, follow_symlinks: bool = True) -> bool:  # noqa: ARG002 - pathlib's signature
        return self.place is not None or super().is_file()

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        """What the system says of the tar, with the size of the member.

        Raises:
            BadMember: it cannot be read.
            OSError: the tar cannot.
        """
        place = self._sound()
        if place is None:
            return super().stat(follow_symlinks=follow_symlinks)
        there = place.shard.path.stat(follow_symlinks=follow_symlinks)
        times = {
            f"st_{each}{unit}": getattr(there, f"st_{each}{unit}")
            for each in ("atime", "mtime", "ctime")
            for unit in ("", "_ns")
        }
        return os.stat_result((*there[:6], place.bytes, *there[7:10]), times)

    def open(  # type: ignore[override]  # of the modes that there are only those that read
        self,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> IO[Any]:
        """The member, opened for reading.

        Raises:
            BadMember: it cannot be read, or its tar was changed since its headers were read.
            OSError: the tar cannot be read.
        """
        place = self._sound()
        if place is None:
            return super().open(mode, buffering, encoding, errors, newline)
        if set(mode) - set("rbt"):
            raise io.UnsupportedOperation("a file inside a tar can be read only")
        file = place.shard.path.open("rb", buffering=0)
        now = os.fstat(file.fileno())
        if (now.st_size, now.st_mtime_ns) != place.shard[1:]:
            file.close()
            raise BadMember(self, "is in a tar that was changed since it was listed")
        raw: Any = _Range(file, place)
        if buffering == 0 and "b" in mode:
            return raw  # type: ignore[no-any-return]
        buffered = io.BufferedReader(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding, errors, newline)

    def _sound(self) -> Place | None:
        """`place`, once it is known that it can be read."""
        place = self.place
        if place is not None and place.fault:
            raise BadMember(self, place.fault)
        return place


class _Range(io.RawIOBase):
    """The content of a member, from its first byte to its last, in its tar, which is closed with it."""

    def __init__(self, file: io.FileIO, place: Place) -> None:
        super().__init__()
        self._file = file
        self._start, self._bytes, self._at = place.start, place.bytes, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._bytes}[whence]
        if at < 0:
            raise OSError("a position before the beginning")
        self._at = at
        return at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        room = min(len(view), max(0, self._bytes - self._at))
        self._file.seek(self._start + self._at)
        count = self._file.readinto(view[:room]) or 0
        self._at += count
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


def place_of(path: Path) -> Place | None:
    """Where a member of a tar lies; None of any other path."""
    return path.place if isinstance(path, Member) else None


def fault_of(path: Path) -> str:
    """Why a member of a tar cannot be read; empty where it can, and of any other path."""
    place = place_of(path)
    return "" if place is None else place.fault


@contextmanager
def handed(path: Path) -> Iterator[Path | IO[bytes]]:
    """What a library is given to read a file: its path, or a member of a tar opened."""
    if place_of(path) is None:
        yield path
        return
    with path.open("rb") as file:
        yield file


def on_disk(path: Path) -> tuple[Path, int]:
    """The file whose bytes those of a path are, and where they begin there: for memory maps."""
    place = place_of(path)
    return (path, 0) if place is None else (place.shard.path, place.start)
