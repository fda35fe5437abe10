"""Tars as folders of their members: indexed by their headers, and what is hostile in them is told, never followed."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

from flexvae_cli.api.readers import HEAD
from flexvae_cli.engine.data.members import Member, Place, Shard
from flexvae_cli.engine.data.tar_headers import TarHeader, tar_headers

MOST_SHOWN = 80  # characters of a name that is told
MOST_CLASS = 64  # bytes of what names the class of a sample
CLASS = ".cls"  # how a member ends that does
MOST_PART, MOST_NAME = 255, 1024  # bytes of a file's own name, and of all of a path
TAR = re.compile(r"\.(tar(\.(gz|bz2|xz|zst|lz4))?|tgz|tbz2?|txz|tzst)$", re.IGNORECASE)

Finds = Callable[[str, Callable[[], bytes]], bool]
"""Whether a file counts, by its name and what gives its first bytes."""


class Listed(NamedTuple):
    """A member of a tar that counts.

    Attributes:
        name: `SHARD.tar/NAME`, no two alike.
        path: where to read it, or be told why it cannot be read.
        label: the class that stands beside it, in `KEY.cls`; else its top-level folder in the tar, or "".
    """

    name: str
    path: Member
    label: str


def is_shard(name: str) -> bool:
    """Whether a file of that name is a tar; a compressed one as well, to be told."""
    return TAR.search(name) is not None


class Headers:
    """The headers of tars, each read once, however many readers look for their files there in vain."""

    def __init__(self) -> None:
        self._known: dict[Shard, list[TarHeader]] = {}  # one that was changed meanwhile is another
        self._settled = False

    def of(self, file: IO[bytes], shard: Shard) -> Iterable[TarHeader]:
        """Those of a tar that may count, see `_counting`."""
        if shard in self._known:
            return self._known[shard]
        found = _counting(tar_headers(file, shard.bytes))
        return found if self._settled else self._known.setdefault(shard, list(found))

    def settle(self) -> None:
        """Keep no more of them: a reader has found a file, and will be the last one that is tried."""
        self._settled = True


def members(shard: str, path: Path, finds: Finds, known: Headers | None = None) -> list[Listed]:
    """The members of a tar that are wanted, in its order, and all that are hostile or damaged.

    Hidden ones and `__MACOSX` are passed over, as in a folder; so is what stands beside a sample: captions, metadata.

    Args:
        shard: what the tar is called, below its source.
        path: where it lies.
        finds: which members count.
        known: keeps the headers for the next reader until one finds a file; by default none is kept.

    Raises:
        OSError: the tar cannot be read.
    """
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        tar = Shard(path, status.st_size, status.st_mtime_ns)
        index = _Index(shard, tar)
        for header in known.of(file, tar) if known else _counting(tar_headers(file, tar.bytes)):
            index.add(file, header, finds)
    if known and any(not place.fault for _, place in index.found):
        known.settle()
    return index.listed()


def _counting(headers: Iterable[TarHeader]) -> Iterator[TarHeader]:
    """The headers that may count, called as samples are, with what is strange about a name as the fault."""
    for header in headers:
        parts = [part for part in header.name.split("/") if part not in ("", ".")]
        fault = header.fault or _strange(header.name, parts)
        name = "/".join(part[:MOST_PART] for part in parts if part != "..").replace("\0", "")[:MOST_NAME]
        hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
        if fault or (name and not header.folder and not hidden):
            yield header._replace(name=name, fault=fault)


class _Index:
    """What was found in a tar so far."""

    def __init__(self, called: str, shard: Shard) -> None:
        self.called = called
        self.shard = shard
        self.found: list[tuple[str, Place]] = []
        self.names: set[str] = set()
        self.classes: dict[str, str] = {}
        self.number = 0  # in the name of the last member that was renamed

    def add(self, file: IO[bytes], header: TarHeader, finds: Finds) -> None:
        """Note a header of `_counting`, where it is of something that is wanted."""
        name = header.name
        if header.fault:
            self._keep(header, header.fault)
        elif name.endswith(CLASS):
            if header.bytes > MOST_CLASS:
                self._keep(header, f"names a class in {header.bytes:,} bytes; {MOST_CLASS} are the most")
            else:
                self.classes.setdefault(_key(name), _head(file, header).decode("utf-8", "replace").strip())
        elif finds(name.rpartition("/")[2], lambda: _head(file, header)):
            self._keep(header, "is in its tar more than once; the first is read" if name in self.names else "")

    def listed(self) -> list[Listed]:
        """All that counts, with its class."""
        return [
            Listed(f"{self.called}/{name}".rstrip("/"), Member(name, place), self._class(name))
            for name, place in self.found
        ]

    def _class(self, name: str) -> str:
        return self.classes.get(_key(name), name.partition("/")[0] if "/" in name else "")

    def _keep(self, header: TarHeader, fault: str) -> None:
        unique = name = header.name
        while unique in self.names:
            self.number = max(self.number, len(self.found)) + 1  # only up: hostile names cost a step each, once
            unique = f"{name} (member {self.number} of those that count)"
        self.names.add(unique)
        self.found.append((unique, Place(self.shard, header.start, header.bytes, fault)))


def _strange(name: str, parts: Iterable[str]) -> str:
    """Why a name is not one of a file below a folder; empty where it is."""
    called = f"in its tar ({name[:MOST_SHOWN]!r})"
    if name.startswith("/"):
        return f"has an absolute name {called}"
    if ".." in parts:
        return f"has a name {called} that leads out of it"
    if "\0" in name:
        return f"has a name {called} with a zero byte"
    long = len(os.fsencode(name)) > MOST_NAME or any(len(os.fsencode(part)) > MOST_PART for part in parts)
    return f"has a name {called} that is too long for a file" if long else ""


def _head(file: IO[bytes], header: TarHeader) -> bytes:
    file.seek(header.start)
    return file.read(min(HEAD, header.bytes))


def _key(name: str) -> str:
    """What a sample and all that stands beside it have in common: the name up to the first dot of its last part."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]
