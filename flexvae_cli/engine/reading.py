"""Files read with suspicion: regular ones only, a chunk at a time, and JSON strictly."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flexvae_cli.engine.files import CHUNK, Digest
from flexvae_cli.errors import ModelError
from flexvae_cli.jsonfile import JSONError, parse_json, read_text

JSON_BYTES = 1 << 26


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
        regular(path)
    try:
        value = parse_json(read_text(path, limit))
    except JSONError as error:
        place = f" ({error.position})" if error.position else ""
        raise ModelError(f"{error}{place}", where=str(path)) from None
    if not isinstance(value, dict):
        raise ModelError("is not a JSON object", where=str(path))
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
