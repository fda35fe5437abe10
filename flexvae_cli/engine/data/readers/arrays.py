"""Arrays of numpy: one sample per .npy, which is mapped from disk, or .npz."""

from __future__ import annotations

import io
import math
import stat
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.lib import format as npy

from flexvae_cli.api import Shape
from flexvae_cli.api.readers import About, BadFile, Header, Reader, Reading
from flexvae_cli.engine.data.members import on_disk
from flexvae_cli.engine.data.readers.span import Span, typed
from flexvae_cli.engine.data.readers.whole import require_end

NPY, ZIP = b"\x93NUMPY", b"PK\x03\x04"
MOST_BYTES = 1 << 33  # of an array that is unpacked into memory
MOST_RATIO = 2000  # times that deflate can shrink anything, and a little more


class Arrays(Reader):
    """See `flexvae_cli.builtin_readers.arrays`."""

    def __init__(self, key: str | None, channels: Literal["first", "last"], span: Span) -> None:
        self.key = key
        self.channels = channels
        self.span = span

    def finds(self, name: str, head: bytes) -> bool:  # noqa: ARG002 - the end of the name decides
        return name.lower().endswith((".npy", ".npz"))

    def header(self, path: Path, like: Shape) -> Header:
        with _opened(path, like, self.key) as (file, size, _):
            shape, _ = _described(path, file, size)
            return Header(self._planes(path, shape, like))

    def read(self, path: Path, like: Shape) -> Reading:
        with _opened(path, like, self.key) as (file, size, key):
            shape, dtype = _described(path, file, size)
            self._planes(path, shape, like)
            if key is None:
                data = _mapped(path, file, shape, dtype)
            else:
                file.seek(0)
                data = npy.read_array(file, allow_pickle=False)
                require_end(path, file, size)
            about: dict[str, Any] = {"dtype": dtype.str, "axes": len(shape), "fortran": bool(np.isfortran(data))}
            about |= {} if key is None else {"key": key}
            if len(shape) < len(like):
                data = data[..., None]
            elif self.channels == "first":
                data = np.moveaxis(data, 0, -1)
            low, high = self.span.of(path, data)
        return Reading(data, low, high, {**about, "low": low, "high": high})

    def suffix(self, name: str) -> str:
        return ".npz" if name.lower().endswith(".npz") else ".npy"

    def write(self, x: np.ndarray, about: About, suffix: str) -> bytes:
        given = self.span
        low = about.get("low", -1.0 if given.low is None else given.low)
        high = about.get("high", 1.0 if given.high is None else given.high)
        data = typed(x, low, high, np.dtype(about.get("dtype", "<f4")))
        if about.get("axes", x.ndim) < x.ndim and len(data) == 1:
            data = data[0]
        elif self.channels == "last":
            data = np.moveaxis(data, 0, -1)
        data = np.asfortranarray(data) if about.get("fortran") else np.ascontiguousarray(data)
        file = io.BytesIO()
        np.save(file, data, allow_pickle=False)
        if suffix != ".npz":
            return file.getvalue()
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:  # an array may be called as np.savez's own
            member = zipfile.ZipInfo(f"{about.get('key', 'arr_0')}.npy")  # without the time: equal arrays, equal bytes
            archive.writestr(member, file.getvalue(), zipfile.ZIP_DEFLATED)
        return packed.getvalue()

    def _planes(self, path: Path, shape: Shape, like: Shape) -> Shape:
        """(c, *space) of an array."""
        axes = len(like) - 1
        if len(shape) not in (axes, axes + 1):
            raise BadFile(path, f"has {len(shape)} axes; wanted are {axes}, or {axes + 1} with channels")
        if 0 in shape:
            raise BadFile(path, f"is empty: its shape is {'x'.join(map(str, shape))}")
        last = self.channels == "last"
        planes = (1, *shape) if len(shape) == axes else (shape[-1], *shape[:-1]) if last else tuple(shape)
        if planes[0] != like[0]:
            hint = "" if planes[0] == shape[0] or last else "; are they its last axis?"
            raise BadFile(path, f"has {planes[0]} channels; wanted are {like[0]}{hint}")
        return planes


@contextmanager
def _opened(path: Path, like: Shape, key: str | None) -> Iterator[tuple[IO[bytes], int, str | None]]:
    """An .npy, be it inside an .npz, from its beginning; its size in bytes; and its name in the .npz.

    Whatever numpy and zipfile raise inside is the file's fault, and told without their words, which change.

    Raises:
        BadFile: it cannot be read, or which array is meant is not clear.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise BadFile(path, "is not a regular file")
        with path.open("rb") as file:
            head = file.read(len(NPY))
            file.seek(0)
            if head == NPY:
                yield file, path.stat().st_size, None
            elif head[:4] in (ZIP, b"PK\x05\x06"):
                with zipfile.ZipFile(file) as archive:
                    info = _chosen(path, archive, like, key)
                    with archive.open(info) as member:
                        yield member, info.file_size, info.filename.removesuffix(".npy")
            else:
                raise BadFile(path, "is neither an .npy nor an .npz file" if head else "is empty")
    except BadFile:
        raise
    except OSError as error:
        raise BadFile(path, f"cannot be read: {(error.strerror or str(error)).lower()}") from error
    except MemoryError as error:
        raise BadFile(path, "does not fit into memory") from error
    except (NotImplementedError, RuntimeError) as error:  # zipfile's, of encryption and of kinds of compression
        raise BadFile(path, "is packed in a way that is not read") from error
    except Exception as error:
        raise BadFile(path, "is damaged: it cannot be unpacked") from error


def _chosen(path: Path, archive: zipfile.ZipFile, like: Shape, key: str | None) -> zipfile.ZipInfo:
    """The member of an .npz that is meant."""
    found = {}
    for info in archive.infolist():
        name = info.filename.removesuffix(".npy")
        if not info.filename.endswith(".npy") or key not in (None, name):
            continue
        if info.file_size > min(MOST_BYTES, MOST_RATIO * max(1, info.compress_size)):
            raise BadFile(path, f"claims {info.file_size:,} bytes for '{name}', more than can be there")
        with archive.open(info) as member:
            axes = len(_described(path, member, info.file_size, numbers=key is not None)[0])
        if key is not None or axes in (len(like) - 1, len(like)):
            found[name] = info
    if not found:
        wanted = f"no array '{key}'" if key else f"no array of {len(like) - 1} axes, or {len(like)} with channels"
        raise BadFile(path, f"holds {wanted}")
    if len(found) > 1:
        raise BadFile(path, f"holds several arrays ({', '.join(sorted(found))}): set data.key")
    return next(iter(found.values()))


def _mapped(path: Path, file: IO[bytes], shape: Shape, dtype: np.dtype) -> np.ndarray:
    """The numbers of an .npy of which the header was read just now, as they lie on disk, be it in a tar."""
    (whole, start), numbers = on_disk(path), file.tell()
    file.seek(0)
    header = npy.read_array_header_1_0 if npy.read_magic(file) == (1, 0) else npy.read_array_header_2_0
    return np.memmap(whole, dtype, "r", start + numbers, shape, "F" if header(file)[1] else "C")


def _header(path: Path, file: IO[bytes]) -> tuple[Shape, np.dtype]:
    """Shape and type of an .npy, as its header has them."""
    try:
        version = npy.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise BadFile(path, f"is of version {version[0]}.{version[1]} of the .npy format, which is not read")
        shape, _, dtype = npy.read_array_header_1_0(file) if version == (1, 0) else npy.read_array_header_2_0(file)
    except (BadFile, OSError):
        raise
    except Exception as error:  # damage raises nearly anything
        raise BadFile(path, "is damaged: it has no header that can be read") from error
    if any(length < 0 for length in shape):
        raise BadFile(path, f"is damaged: its shape is {'x'.join(map(str, shape))}")
    return shape, dtype


def _described(path: Path, file: IO[bytes], size: int, *, numbers: bool = True) -> tuple[Shape, np.dtype]:
    """Shape and type of an .npy of so many bytes, from its header."""
    shape, dtype = _header(path, file)
    if dtype.hasobject and numbers:
        raise BadFile(path, "holds pickled objects, which can run any program; pickle refused")
    if dtype.kind not in "biuf" and numbers:
        raise BadFile(path, f"holds {dtype.name}, not real numbers")
    needed, there = math.prod(shape) * dtype.itemsize, size - file.tell()
    if needed > there and not dtype.hasobject:
        raise BadFile(path, f"is truncated: {needed:,} bytes of numbers are claimed, {there:,} are there")
    return shape, dtype
