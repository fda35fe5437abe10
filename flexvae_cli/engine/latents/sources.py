"""Images on their way to the encoder, together with what identifies the content of their files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flexvae_cli.engine.data.opening import BadFile
from flexvae_cli.engine.data.sources import Item
from flexvae_cli.engine.data.whole import WholeFiles, WholeImages
from flexvae_cli.engine.manifest import ImageSource
from flexvae_cli.engine.reading import digest_of
from flexvae_cli.errors import FlexVAEError


@dataclass(frozen=True, slots=True)
class Read:
    """An item whose file was read.

    Attributes:
        item: the item.
        source: what the file held; None where it cannot be read at all.
        ready: whether what was read is a sample (c, *space) already, not the pixels of an image.
    """

    item: Item
    source: ImageSource | None
    ready: bool = False

    @property
    def name(self) -> str:
        return self.item.name


class SourceImages(WholeImages):
    """`WholeImages` that says of each file what it held; the hash is taken where the file is read, by a worker."""

    def __getitem__(self, index: int) -> tuple[Read, np.ndarray | BadFile]:  # type: ignore[override]  # more than an item
        item = self.items[index]
        source = source_of(item.path)  # first: what is changed while it is read counts as changed the next time
        (_, about), pixels = super().__getitem__(index)
        return Read(item, source and source.model_copy(update={"about": about})), pixels


class SourceFiles(WholeFiles):
    """`SourceImages` for what is no picture; what a file says of itself is kept beside its hash."""

    def __getitem__(self, index: int) -> tuple[Read, Any]:  # type: ignore[override]  # more than an item
        item = self.items[index]
        source = source_of(item.path)
        (_, about), x = super().__getitem__(index)
        try:
            json.dumps(about, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            about, x = {}, BadFile(item.path, f"says what has no place in a manifest ({error})")
        return Read(item, source and source.model_copy(update={"about": about}), ready=True), x


def source_of(path: Path) -> ImageSource | None:
    """What a file holds; None where it cannot be read."""
    try:
        when = path.stat().st_mtime_ns
        digest = digest_of(path)
    except (OSError, FlexVAEError):
        return None
    return ImageSource(bytes=digest.bytes, mtime_ns=when, sha256=digest.sha256)


def still_is(path: Path, source: ImageSource, since: int) -> ImageSource | None:
    """What a file holds, where that is what it held.

    Args:
        path: the file.
        source: what it held.
        since: nanoseconds since 1970 when that was encoded. The content is looked at unless nothing was done to the
            file since then: the time that a file carries is not enough, as archives and `cp -p` bring an old one.
    """
    try:
        now = path.stat()
    except OSError:
        return None
    if now.st_size != source.bytes:
        return None
    if now.st_mtime_ns == source.mtime_ns and now.st_ctime_ns < since:
        return source
    found = source_of(path)
    if found is None or found.sha256 != source.sha256:
        return None
    return found.model_copy(update={"about": source.about})
