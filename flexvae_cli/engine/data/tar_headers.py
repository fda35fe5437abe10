"""The headers of a tar, one after the other, and no more memory than one takes, whatever they claim.

`tarfile` keeps every header that it has read and believes the size of a long name; here are a million members and files
that nobody vouches for. A single block is still read by it.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, NamedTuple

BLOCK = tarfile.BLOCKSIZE
MOST_EXTRA = 1 << 20  # bytes of a long name, or of what else stands before a header
MOST_PADDING = 1 << 24  # bytes behind the end that are looked at; writers pad to some KiB
MAGICS = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"\x04\x22\x4d\x18")  # gzip, bzip2, xz, zstd, lz4
COMPRESSED = "is compressed, and nothing in it can be found without unpacking it: decompress it to a plain .tar first"
KINDS = {
    tarfile.LNKTYPE: "a hard link",
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a FIFO",
}
UNKNOWN, SPARSE, UNNAMED = "of an unknown kind", "a sparse file", "(no name)"
RECORD = re.compile(rb"([0-9]{1,7}) ")
MOST_DIGITS = 19  # of a size
PLAIN = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
EXTENDED = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
NAMES = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)


class TarHeader(NamedTuple):
    """What a tar says of a member.

    Attributes:
        name: as it stands there; empty where the fault is the tar's own.
        start: where the content begins.
        bytes: of the content.
        fault: why it cannot be read; empty where it can.
        folder: whether it is none but a folder.
    """

    name: str
    start: int = 0
    bytes: int = 0
    fault: str = ""
    folder: bool = False


class _Damaged(Exception):  # noqa: N818 - it never leaves this file
    """What is wrong with a tar from some place on."""


def tar_headers(file: IO[bytes], there: int) -> Iterator[TarHeader]:
    """The members of a tar in order; last, where it is damaged or cut, a header without a name that says so.

    Args:
        file: the tar.
        there: its size in bytes.
    """
    at, before = 0, _Before()
    try:
        while (block := _block(file, at, there)) is not None:
            info = _parsed(block, at)
            start = at + BLOCK
            if info.type in (*NAMES, *EXTENDED, tarfile.XGLTYPE):
                before.add(info.type, _content(file, start, info.size, there) if info.type != tarfile.XGLTYPE else b"")
                at = start + _padded(info.size)
                continue
            if info.type == tarfile.GNUTYPE_SPARSE:
                before.sparse = True
                start = _behind_sparse(file, block, start, there)
            header = before.taken(info, start)
            at = start + (0 if info.type in KINDS or info.isdir() else _padded(header.bytes))
            if start + header.bytes > there and at > start:
                fault = f"is truncated: the tar claims {header.bytes:,} bytes for it, {there - start:,} are there"
                yield header._replace(fault=header.fault or fault)
                return
            yield header
        _require_end(file, at)
    except _Damaged as damage:
        yield TarHeader("", fault=str(damage))


@dataclass(slots=True)
class _Before:
    """What stands before a header, for that one alone."""

    name: str = ""
    size: int = -1
    sparse: bool = False

    def add(self, kind: bytes, content: bytes) -> None:
        """Note a long name or an extended header."""
        if kind == tarfile.GNUTYPE_LONGNAME:
            self.name = _text(content.partition(b"\0")[0])
        for key, value in _records(content) if kind in EXTENDED else ():
            if key == b"path":
                self.name = self.name if self.sparse and self.name else _text(value)
            elif key == b"size" and value.isdigit() and len(value) < MOST_DIGITS:
                self.size = int(value)
            elif key.startswith(b"GNU.sparse."):
                self.sparse = True
                self.name = _text(value) if key == b"GNU.sparse.name" else self.name

    def taken(self, info: tarfile.TarInfo, start: int) -> TarHeader:
        """The header of a member; what stood before it is forgotten."""
        name, size = self.name or info.name or UNNAMED, info.size if self.size < 0 else self.size
        what = SPARSE if self.sparse else KINDS.get(info.type, "" if info.type in PLAIN else UNKNOWN)
        self.name, self.size, self.sparse = "", -1, False
        if info.isdir():
            return TarHeader(name, start, folder=True)
        return TarHeader(name, start, size, f"is {what} in a tar, which is not read" if what else "")


def _block(file: IO[bytes], at: int, there: int) -> bytes | None:
    """The header at a position; None at the end.

    Raises:
        _Damaged: there is neither.
    """
    file.seek(at)
    block = file.read(BLOCK)
    if len(block) == BLOCK:
        return block if block.strip(b"\0") else None
    if not at:
        raise _Damaged(_foreign(block))
    raise _Damaged(f"has no end: it stops after {there:,} bytes, and members may be missing")


def _require_end(file: IO[bytes], at: int) -> None:
    """Refuse an end that is none: an empty block by itself, or one with another tar behind it.

    Raises:
        _Damaged: what there is more is not read.
    """
    file.seek(at + BLOCK)
    for number in range(MOST_PADDING // BLOCK):
        block = file.read(BLOCK)
        if len(block) < BLOCK:
            return
        if not block.strip(b"\0"):
            continue
        if number == 0:
            raise _Damaged(f"is damaged at byte {at:,} (a lone empty block): what stands behind is not read")
        try:
            _parsed(block, at)
        except _Damaged:
            return  # whatever it is, it is no tar
        raise _Damaged("holds another tar behind its end, which is not read")


def _foreign(head: bytes) -> str:
    """Why what begins so is no tar."""
    return COMPRESSED if head.startswith(MAGICS) else "is not a tar file" if head else "is empty"


def _parsed(block: bytes, at: int) -> tarfile.TarInfo:
    """A header.

    Raises:
        _Damaged: it is none.
    """
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError, OverflowError) as error:
        if at:
            raise _Damaged(f"is damaged at byte {at:,}: what stands behind is not read") from error
        raise _Damaged(_foreign(block)) from error
    if info.size < 0:
        raise _Damaged(f"is damaged at byte {at:,} (a size below 0): what stands behind is not read")
    return info


def _content(file: IO[bytes], start: int, size: int, there: int) -> bytes:
    """What stands before a header.

    Raises:
        _Damaged: it is not there, or too long to be true.
    """
    if size > MOST_EXTRA or start + size > there:
        raise _Damaged(f"is damaged at byte {start:,} (a name of {size:,} bytes): what stands behind is not read")
    file.seek(start)
    return file.read(size)


def _behind_sparse(file: IO[bytes], block: bytes, start: int, there: int) -> int:
    """Where the content of a sparse file begins: behind the blocks that list its pieces."""
    more = block[482]
    while more and start + BLOCK <= there:
        file.seek(start)
        more = file.read(BLOCK)[504]
        start += BLOCK
    return start


def _records(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The records `LENGTH KEY=VALUE` of an extended header, up to the first that is none."""
    at = 0
    while match := RECORD.match(content, at):
        length = int(match[1])
        key, equals, value = content[match.end() : at + length - 1].partition(b"=")
        if not equals or at + length > len(content) or at + length <= match.end():
            return
        yield key, value
        at += length


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")
