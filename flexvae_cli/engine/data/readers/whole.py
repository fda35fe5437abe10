"""Whether files are whole, where a library that reads them gives what is there without a word."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import IO, Literal

from flexvae_cli.api.readers import BadFile

CHUNK = 1 << 20
MOST_PAGE = 27 + 255 + 255 * 255  # bytes of a page of OGG
UNKNOWN = 0xFFFFFFFF  # the size of a chunk of RF64 that the chunk `ds64` tells
REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))  # each byte, its last bit first


def require_end(path: Path, stream: IO[bytes], most: int) -> None:
    """Read on to the end of what is unpacked: only there is its checksum compared.

    Args:
        path: the file.
        stream: what unpacks it; it raises where the checksum is another.
        most: the most bytes that may be left.

    Raises:
        BadFile: there are more.
    """
    while more := stream.read(CHUNK):
        most -= len(more)
        if most < 0:
            raise BadFile(path, "goes on long after its numbers")


def require_samples(path: Path) -> None:
    """Refuse a WAV, be it RIFX or RF64, that claims more bytes of samples than it holds.

    Raises:
        BadFile: says how many are there.
    """
    with path.open("rb") as raw:
        form = raw.read(12)[:4]
        order: Literal["little", "big"] = "big" if form == b"RIFX" else "little"
        of_data = UNKNOWN
        while len(head := raw.read(8)) == 8:
            start, size = raw.tell(), int.from_bytes(head[4:], order)
            if head[:4] == b"ds64":
                of_data = int.from_bytes(raw.read(16)[8:], order)  # behind the size of the file
            if head[:4] == b"data":
                claimed = of_data if form == b"RF64" and size == UNKNOWN else size
                there = path.stat().st_size - start
                if claimed > there:
                    raise BadFile(path, f"is truncated: {claimed:,} bytes of samples are claimed, {there:,} are there")
                return
            raw.seek(start + size + size % 2)


def require_pages(path: Path, *, every: bool) -> None:
    """Refuse an OGG with a page that does not fit its checksum, or without a last one (RFC 3533).

    Args:
        path: the file.
        every: whether every page is looked at; otherwise the last one is.

    Raises:
        BadFile: says what.
    """
    with path.open("rb") as raw:
        if not every:
            start = raw.seek(max(0, path.stat().st_size - MOST_PAGE))
            raw.seek(start + max(0, raw.read().rfind(b"OggS")))
        ended = False
        while (head := raw.read(27)).startswith(b"OggS"):
            lengths = raw.read(head[26]) if len(head) == 27 else b""
            content = raw.read(sum(lengths))
            if len(head) < 27 or len(lengths) < head[26] or len(content) < sum(lengths):
                raise BadFile(path, "is truncated: its last page is cut")
            if _checksum(head[:22] + bytes(4) + head[26:] + lengths + content) != int.from_bytes(head[22:26], "little"):
                raise BadFile(path, "is damaged: a page does not fit its checksum")
            ended = bool(head[5] & 4)
    if not ended:  # what stands behind the last page is no sound
        raise BadFile(path, "is damaged: a page is missing" if head else "is truncated: it has no last page")


def _checksum(page: bytes) -> int:
    """The checksum of a page: zlib's polynomial, but the first bit of a byte first, and begun with 0."""
    mirrored = zlib.crc32(page.translate(REVERSED), UNKNOWN) ^ UNKNOWN
    return int(f"{mirrored:032b}"[::-1], 2)
