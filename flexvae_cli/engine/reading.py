"""Files read with suspicion: regular ones only, a chunk at a time, and JSON strictly."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flexvae_cli.engine.files import CHUNK, Digest
from flexvae_cli.errors import ModelError

JSON_DEPTH = 64
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
