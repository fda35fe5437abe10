"""Images on disk as training takes them, scaled and in 8 bits, so that each is decoded once and never again.

A file of the cache is named by a hash of the image's content and of how it is prepared. It is written beside its place
and renamed, so that a reader finds it whole or not at all, whatever processes share the folder and wherever one is
killed; it is mapped into memory, so that processes share its pages too.
"""

from __future__ import annotations

import io
import os
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np
import PIL

from flexvae_cli.engine.files import make_directory, write_new, writing
from flexvae_cli.engine.reading import chunks_of
from flexvae_cli.errors import FlexVAEError

FORMAT = 1  # of the entries: another one where the same decoding would give other pixels
TEMPORARY = ".tmp-"
FORGOTTEN = 3600.0  # seconds after which what is half written has lost its writer
_contents: dict[str, tuple[int, int, str]] = {}  # path -> size, time and hash of what this process has read


@dataclass(frozen=True, slots=True)
class ImageCache:
    """A folder of decoded images; any number of processes may use it, for any data.

    Attributes:
        folder: where they lie.
    """

    folder: Path

    @classmethod
    def at(cls, folder: Path) -> ImageCache:
        """The cache in a folder, which is created where it is missing; what killed writers left is removed.

        Raises:
            ResourceError: it cannot be written to.
        """
        with writing(folder):
            make_directory(folder)
            probe = folder / _temporary()
            write_new(probe, [b""])
            probe.unlink()
        for orphan in folder.glob(f"*/{TEMPORARY}*"):
            with suppress(OSError):
                if time.time() - orphan.stat().st_mtime > FORGOTTEN:
                    orphan.unlink()
        return cls(folder)

    def get(self, path: Path, how: str, decode: Callable[[], np.ndarray]) -> np.ndarray:
        """The pixels (h, w, c) of an image: those of the cache, or else those of `decode`, which are then kept.

        Images of more than 8 bits are not kept. Where the disk is full nothing more is kept, and all goes on.

        Args:
            path: the image.
            how: all that the pixels depend on besides the content of the file.
            decode: reads the image.
        """
        content = _content_of(path)
        if content is None:
            return decode()
        made_by = f"{FORMAT}\0Pillow {PIL.__version__}"
        name = blake2b(f"{made_by}\0{content}\0{how}".encode(), digest_size=16).hexdigest()
        place = self.folder / name[:2] / f"{name}.npy"
        found = _mapped(place)
        if found is not None:
            return found
        pixels = decode()
        if pixels.dtype == np.uint8:
            _keep(place, pixels)
        return pixels


def _content_of(path: Path) -> str | None:
    """A hash of what is in a file, taken once as long as its size and time stay; None where it cannot be read."""
    try:
        status = path.stat()
        size, when, content = _contents.get(str(path), (-1, -1, ""))
        if (size, when) != (status.st_size, status.st_mtime_ns):
            digest = blake2b(digest_size=16)
            for chunk in chunks_of(path):
                digest.update(chunk)
            content = digest.hexdigest()
            _contents[str(path)] = status.st_size, status.st_mtime_ns, content
    except (OSError, FlexVAEError):
        return None
    return content


def _mapped(place: Path) -> np.ndarray | None:
    """Pixels that are kept, (h, w, c) of uint8; None where there are none, or not whole."""
    try:
        pixels = np.load(place, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    sound = isinstance(pixels, np.memmap) and pixels.dtype == np.uint8 and pixels.ndim == 3
    return pixels if sound else None


def _keep(place: Path, pixels: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.save(buffer, pixels, allow_pickle=False)
    temporary = place.with_name(_temporary())
    with suppress(OSError):  # a full disk, or the same image at the same time: what is decoded will do
        make_directory(place.parent)
        try:
            write_new(temporary, [buffer.getbuffer()])
            temporary.replace(place)
        finally:
            temporary.unlink(missing_ok=True)


def _temporary() -> str:
    return f"{TEMPORARY}{os.getpid()}-{secrets.token_hex(4)}"
