"""Files that outlive a crash: written beside their place, forced to disk, then renamed; read with suspicion.

A process that is killed, a machine that loses power or a disk that fills up leaves the old state or the new one, never
a mixture. All writing goes through `write_new`, `replace_file` and `publish_directory`; a final name is never opened
for writing, and a link is never followed.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
import signal
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from flexvae_cli.errors import ModelError, ResourceError

if TYPE_CHECKING:
    from torch import Tensor

CHUNK = 1 << 24  # bytes handed to the system at a time
JSON_DEPTH = 64
JSON_BYTES = 1 << 26
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
PICKLE_SUFFIXES = {".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle"}
_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "U16": "uint16",
    "U32": "uint32",
    "U64": "uint64",
    "BOOL": "bool",
}
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
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


# ---------------------------------------------------------------------------------------------------------- writing


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
    """Removes what killed processes left behind in a directory that has no other writer now."""
    for orphan in [*directory.glob(".tmp-*"), *directory.glob(".del-*")]:
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
        if error.errno in _DISK_FULL:
            raise _disk_full(path, needed) from error
        raise ResourceError(f"cannot be written: {error.strerror or error}", where=str(path)) from error


def require_space(path: Path, needed: int) -> None:
    """Refuses at once what cannot fit.

    Raises:
        DiskFullError: fewer than `needed` bytes are free where `path` is or will be.
    """
    if _free_space(path) < needed:
        raise _disk_full(path, needed)


def _free_space(path: Path) -> int:
    return shutil.disk_usage(next(p for p in [path.absolute(), *path.absolute().parents] if p.exists())).free


def _disk_full(path: Path, needed: int) -> DiskFullError:
    wanted = f"{needed / 1e6:,.1f} MB needed, " if needed else ""
    free = f"{_free_space(path) / 1e6:,.1f} MB free"
    return DiskFullError(
        f"no space left: {wanted}{free}",
        where=str(path),
        hint="make room, or choose another place; what was there is intact",
    )


# ---------------------------------------------------------------------------------------------------------- reading


def chunks_of(path: Path) -> Iterator[bytes]:
    """The content of a regular file, a chunk at a time."""
    with regular(path).open("rb") as file:
        while chunk := file.read(CHUNK):
            yield chunk


def digest_of(path: Path) -> Digest:
    """The sha256 and the size of a file."""
    sha256, size = hashlib.sha256(), 0
    for chunk in chunks_of(path):
        sha256.update(chunk)
        size += len(chunk)
    return Digest(sha256.hexdigest(), size)


def regular(path: Path) -> Path:
    """`path`, once it is known that opening it cannot block: pipes and devices are refused.

    Raises:
        ModelError: there is no such file, or it is not a regular one.
    """
    if not path.exists():
        raise ModelError("is missing", where=str(path))
    if not path.is_file():
        raise ModelError("is not a regular file", where=str(path))
    return path


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns the system's errors inside into ModelError."""
    try:
        yield
    except OSError as error:
        raise ModelError(f"cannot be read: {error.strerror or error}", where=str(path)) from error


def read_json(path: Path, limit: int = JSON_BYTES) -> dict[str, Any]:
    """A JSON object, read strictly: UTF-8, no key twice, finite numbers, at most 64 levels deep.

    Raises:
        ModelError: it is not that, or has more than `limit` bytes; the text says where.
    """
    with reading(path):
        if regular(path).stat().st_size > limit:
            raise ModelError(f"has more than {limit:,} bytes; that is not a description of ours", where=str(path))
        data = path.read_bytes()
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_finite, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"is not readable JSON: {error}", where=str(path)) from error
    if not isinstance(value, dict):
        raise ModelError("is not a JSON object", where=str(path))
    if _depth(value) > JSON_DEPTH:
        raise ModelError(f"is nested more than {JSON_DEPTH} levels deep", where=str(path))
    return value


def json_bytes(value: dict[str, Any]) -> bytes:
    """`value` as JSON for people and machines: UTF-8, two spaces, the keys in their order, a newline at the end.

    Raises:
        ValueError: a number is not finite.
        TypeError: a value has no JSON form.
    """
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()


def seal_of(value: dict[str, Any]) -> str:
    """The sha256 of a JSON value, whatever the layout and the order of its keys in the file."""
    normal = json.loads(json.dumps(value, allow_nan=False))  # tuples become lists, every key a string
    return hashlib.sha256(json.dumps(normal, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        key = next(k for k, n in Counter(k for k, _ in pairs).items() if n > 1)
        raise ValueError(f"key {key[:64]!r} is there twice")
    return value


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:64]} is not a finite number")
    return number


def _depth(value: object) -> int:
    level, depth = [value], 0
    while level := [v for v in level if isinstance(v, (dict, list))]:
        depth += 1
        level = [child for v in level for child in (v.values() if isinstance(v, dict) else v)]
    return depth


# ---------------------------------------------------------------------------------------------------------- tensors


def tensor_bytes(tensors: dict[str, Tensor]) -> int:
    """The bytes that the values of the tensors take."""
    return sum(t.numel() * t.element_size() for t in tensors.values())


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> Digest:
    """Writes tensors of any device as a new safetensors file, durably, with one tensor at a time on the host.

    (`safetensors.torch.save_file` wants all of them on the host and none shared, ignores the umask and is not fsynced.)

    Raises:
        ValueError: a tensor has a type that the format has no name for.
    """
    return write_new(path, _safetensors_chunks(tensors))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the host, mapped into memory rather than read.

    Raises:
        ModelError: it is not a safetensors file, or a damaged one.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    refuse_pickle(path)
    with reading(path):
        try:
            return load_file(regular(path))
        except SafetensorError as error:
            raise ModelError(f"is not a readable safetensors file: {error}", where=str(path)) from error


def refuse_pickle(path: Path) -> None:
    """Names a pickle as what it is; nothing in it is ever run.

    Raises:
        ModelError: the file is a pickle or a zip archive, as `torch.save` writes them, or is named like one.
    """
    if not path.is_file():
        return
    with reading(path), path.open("rb") as file:
        start = file.read(9)
    zipped = start.startswith(b"PK\x03\x04")
    # a safetensors file may begin with the same two bytes, but its header opens with a brace after eight
    pickled = start[:1] == b"\x80" and start[1:2] in {b"\x02", b"\x03", b"\x04", b"\x05"} and start[8:] != b"{"
    if zipped or pickled or path.suffix.lower() in PICKLE_SUFFIXES:
        raise ModelError("pickle refused: it can run any program; FlexVAE reads safetensors only", where=str(path))


def _safetensors_chunks(tensors: dict[str, Tensor]) -> Iterator[bytes | memoryview]:
    import torch

    dtypes = {getattr(torch, torch_name): name for name, torch_name in _DTYPES.items()}
    # 8 bytes of header length, the header (JSON, padded so that the data is aligned), then the data without gaps
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in ordered:
        if tensor.dtype not in dtypes or tensor.layout is not torch.strided or name in header:
            raise ValueError(f"tensor {name!r} of {tensor.dtype} cannot be kept in a safetensors file")
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": dtypes[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for _, tensor in ordered:
        yield tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
