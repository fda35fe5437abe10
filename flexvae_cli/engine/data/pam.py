"""PAM, the format of netpbm with any number of channels and up to 16 bits, which Pillow does not read."""

from __future__ import annotations

import re
import stat
from pathlib import Path
from typing import NamedTuple

import numpy as np

from flexvae_cli.api.readers import BadFile

MAGIC = b"P7\n"
MOST_HEADER = 4096  # bytes
NUMBER = re.compile(rb"[0-9]{1,10}")


class PamHeader(NamedTuple):
    """What stands in front of the pixels.

    Attributes:
        height, width, depth: rows, columns and channels.
        maxval: the number of white.
        kind: its TUPLTYPE, such as `RGB_ALPHA`; empty where it says none.
        start: where the pixels begin.
    """

    height: int
    width: int
    depth: int
    maxval: int
    kind: str
    start: int

    @property
    def has_alpha(self) -> bool:
        """Whether the last channel is opacity."""
        return self.kind.endswith("_ALPHA") and self.depth in (2, 4)


def pam_header(path: Path) -> PamHeader | None:
    """The header of a PAM file; None where the file is none, or cannot be opened.

    Raises:
        BadFile: it begins as one and is damaged.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return None
        with path.open("rb") as file:
            head = file.read(MOST_HEADER)
    except OSError:
        return None
    if not head.startswith(MAGIC):
        return None
    text, end, _ = head.partition(b"ENDHDR\n")
    lines = [line.split(None, 1) for line in text[len(MAGIC) :].splitlines() if line and not line.startswith(b"#")]
    fields = {line[0]: line[1].strip() for line in lines if len(line) == 2}
    numbers = [fields.get(key, b"") for key in (b"HEIGHT", b"WIDTH", b"DEPTH", b"MAXVAL")]
    if not end or not all(NUMBER.fullmatch(number) for number in numbers):
        raise BadFile(path, "is a damaged or truncated PAM file")
    height, width, depth, maxval = map(int, numbers)
    if min(height, width, depth) < 1 or not 1 <= maxval <= 65535:
        raise BadFile(path, "is a damaged PAM file (a size of 0, or more than 16 bits)")
    kind = fields.get(b"TUPLTYPE", b"").decode("ascii", "replace")
    return PamHeader(height, width, depth, maxval, kind, len(text) + len(end))


def read_pam(path: Path, header: PamHeader) -> np.ndarray:
    """The pixels (h, w, depth) in uint8 or uint16, white at 255 or 65535.

    Raises:
        BadFile: the file ends early, or holds a number beyond its white.
    """
    dtype = np.dtype(np.uint8 if header.maxval < 256 else ">u2")
    count = header.height * header.width * header.depth
    if path.stat().st_size - header.start < count * dtype.itemsize:
        raise BadFile(path, "is truncated")
    with path.open("rb") as file:
        file.seek(header.start)
        flat = np.frombuffer(file.read(count * dtype.itemsize), dtype)
    if int(flat.max()) > header.maxval:
        raise BadFile(path, f"is damaged (a number above its white, {header.maxval})")
    white = 255 if dtype.itemsize == 1 else 65535
    pixels = flat.astype(dtype.newbyteorder("="))
    if header.maxval != white:
        pixels = np.rint(flat.astype(np.float64) * (white / header.maxval)).astype(pixels.dtype)
    return pixels.reshape(header.height, header.width, header.depth)


def pam_bytes(pixels: np.ndarray, maxval: int) -> bytes:
    """Pixels (h, w, depth), whole numbers from 0 to `maxval`, as a file."""
    height, width, depth = pixels.shape
    kinds = {1: "GRAYSCALE", 2: "GRAYSCALE_ALPHA", 3: "RGB", 4: "RGB_ALPHA"}
    kind = f"TUPLTYPE {kinds[depth]}\n" if depth in kinds else ""
    head = f"P7\nWIDTH {width}\nHEIGHT {height}\nDEPTH {depth}\nMAXVAL {maxval}\n{kind}ENDHDR\n"
    return head.encode() + pixels.astype(np.uint8 if maxval < 256 else ">u2").tobytes()
