"""What an encode has done so far, on disk: a line for every unit, written once its files are in place.

A process that is killed leaves whole lines and whole files. The next encode reads both, takes nothing for granted that
the files do not bear out, and goes on; `manifest.json` is made from the lines at the end.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from flexvae_cli.engine.files import fsync_directory, make_directory, replace_file, write_all, writing
from flexvae_cli.engine.manifest import MANIFEST, Entry, Failure, LatentFile, LatentImage, Manifest, Text
from flexvae_cli.engine.reading import digest_of, seal_of
from flexvae_cli.errors import FlexVAEError, ResourceError

FOLDER = ".encode"  # in the output, until the manifest is published
STOCK = f"{FOLDER}/stock"  # files of before that have no place any more, but latents that do
APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)


class Record(Entry):
    """What became of a unit.

    Attributes:
        unit: its key; empty where the files belong to no unit of the plan, but hold latents that may.
        files, images, failures: as in a manifest.
    """

    unit: Text
    files: list[LatentFile]
    images: list[LatentImage]
    failures: list[Failure]


class Journal:
    """The record of one process.

    Args:
        output: the folder that is written to, resolved.
        settings: all that decides what a latent is.
        rank: the number of the process.
    """

    def __init__(self, output: Path, settings: dict[str, Any], rank: int) -> None:
        self.path = output / FOLDER / f"rank{rank:02d}.jsonl"
        self.settings = settings

    def begin(self, records: Iterable[Record]) -> None:
        """Replace all journals by one that holds these records.

        Raises:
            ResourceError: it cannot be written.
        """
        lines = [self._line({"settings": self.settings}), *(self._line(each.model_dump()) for each in records)]
        with writing(self.path):
            make_directory(self.path.parent)
            replace_file(self.path, b"".join(lines))
            for other in self.path.parent.glob("rank*.jsonl"):
                if other != self.path:
                    other.unlink(missing_ok=True)
            fsync_directory(self.path.parent)

    def add(self, record: Record) -> None:
        """Write a record; it is on disk when this returns.

        Raises:
            ResourceError: it cannot be written.
        """
        with writing(self.path):
            new = not self.path.exists()
            descriptor = os.open(self.path, APPEND, 0o666)
            try:
                if new:
                    write_all(descriptor, self._line({"settings": self.settings}))
                write_all(descriptor, self._line(record.model_dump()))
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    @staticmethod
    def _line(content: dict[str, Any]) -> bytes:
        return (json.dumps({"seal": seal_of(content), **content}) + "\n").encode()


def read_journals(output: Path) -> tuple[dict[str, Any] | None, list[Record]]:
    """The settings of an encode that was not finished, and all records of it; a line that is torn or edited is none."""
    settings, records = None, []
    for path in sorted((output / FOLDER).glob("rank*.jsonl")):
        for line in path.read_bytes().splitlines() if path.is_file() and not path.is_symlink() else []:
            with suppress(ValueError, ValidationError, RecursionError):
                content = json.loads(line)
                if content.pop("seal") == seal_of(content):
                    if "settings" in content:
                        settings = content["settings"]
                    else:
                        records.append(Record.model_validate(content))
    return settings, records


def records_of(manifest: Manifest) -> list[Record]:
    """What a finished encode would have in its journal, with a record for each file."""
    images: dict[str, list[LatentImage]] = {file.path: [] for file in manifest.files}
    for image in manifest.images:
        images[image.file].append(image)
    return [
        Record(unit="", files=[file], images=sorted(images[file.path], key=lambda i: i.index), failures=[])
        for file in manifest.files
    ]


def borne_out(output: Path, records: Iterable[Record]) -> list[Record]:
    """The records whose files are all there, with the very content that is recorded."""
    return [record for record in records if all(_is_there(output, file) for file in record.files)]


def _is_there(output: Path, file: LatentFile) -> bool:
    path = output / file.path
    try:
        if path.resolve() != path or not path.is_file() or path.stat().st_size != file.bytes:
            return False
        return digest_of(path).sha256 == file.sha256
    except (OSError, FlexVAEError):
        return False


def is_ours(root: Path) -> bool:
    """Whether a folder holds an encode, finished or not."""
    return (root / MANIFEST).exists() or (root / FOLDER).is_dir()


def close_journals(output: Path) -> None:
    """The encode is complete: nothing is needed any more but its manifest."""
    shutil.rmtree(output / FOLDER, ignore_errors=True)


@contextmanager
def held(output: Path) -> Iterator[None]:
    """Within, no other encode writes to this folder; the kernel frees it when this process ends, however it ends.

    Raises:
        ResourceError: another one does.
    """
    try:
        import fcntl
    except ImportError:  # Windows: there is no such lock on a folder
        yield
        return
    new = not output.exists()
    with writing(output):
        make_directory(output)
    descriptor = os.open(output, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            hint = "wait for it, stop it, or choose another output folder"
            raise ResourceError("another encode writes to it", where=str(output), hint=hint) from None
        yield
    finally:
        if new:
            with suppress(OSError):  # something was written
                output.rmdir()
        os.close(descriptor)
