"""JSON files that show damage: each carries a seal, the sha256 of its own content, and names others by theirs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flexvae_cli.engine.files import Digest, write_new
from flexvae_cli.engine.reading import digest_of, json_bytes, read_json, reading, regular, seal_of
from flexvae_cli.engine.tensorfiles import refuse_pickle
from flexvae_cli.errors import ModelError

FORMAT = 1
_RESERVED = {"format", "weights", "step", "files", "seal"}


def write_sealed(path: Path, value: dict[str, Any], **ours: Any) -> Digest:
    """Writes `value`, the keys that FlexVAE adds, and a seal, the sha256 of them all, into a new file.

    Raises:
        ValueError: `value` uses a reserved key or holds a number that is not finite.
        TypeError: a value has no JSON form.
    """
    if taken := _RESERVED & value.keys():
        raise ValueError(f"{path.name} keeps the keys {sorted(taken)} for itself")
    content = {"format": FORMAT, **ours, **value}
    return write_new(path, [json_bytes({**content, "seal": seal_of(content)})])


def read_sealed(path: Path) -> dict[str, Any]:
    """The content of a sealed file, less its seal.

    Raises:
        ModelError: it is damaged, edited, or of another format version.
    """
    content = read_json(path)
    version = content.get("format")
    if type(version) is not int or version < 1:
        raise ModelError("has no format version that FlexVAE ever wrote", where=str(path))
    if version > FORMAT:
        what = f"is of format {version}, from a newer FlexVAE; this one reads format {FORMAT}"
        raise ModelError(what, where=str(path), hint="pip install --upgrade flexvae")
    if content.pop("seal", None) != seal_of(content):
        raise ModelError("is damaged or was edited: its seal does not match its content", where=str(path))
    return content


def given(content: dict[str, Any]) -> dict[str, Any]:
    """What was given to `write_sealed`, without the keys that FlexVAE added."""
    return {key: value for key, value in content.items() if key not in _RESERVED}


def require_digest(path: Path, digest: Any) -> None:
    """Refuses a file that is not the one that `digest`, a dict with `sha256` and perhaps `bytes`, was taken of.

    Raises:
        ModelError: it is another, or none that can be read.
    """
    refuse_pickle(path)
    with reading(path):
        size = regular(path).stat().st_size
        if not isinstance(digest, dict) or digest.get("bytes", size) != size:
            raise ModelError(f"is damaged or replaced: it has {size:,} bytes, not the recorded number", where=str(path))
        if digest.get("sha256") != digest_of(path).sha256:
            raise ModelError("is damaged or replaced: its sha256 is not the recorded one", where=str(path))
