"""What output files are called, and that they stay where they belong: below one folder, past no link, over no input."""

from __future__ import annotations

import io
import json
import os
import secrets
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from flexvae_cli.engine.data.formats import IMAGE_EXTENSION
from flexvae_cli.engine.files import Digest, make_directory, write_new, writing
from flexvae_cli.errors import UsageError

if TYPE_CHECKING:
    from PIL import Image

    from flexvae_cli.engine.data.dataset import Fault

MOST_BYTES = 255  # of one name, on every common file system
BAD_FILES = "bad_files.jsonl"
TEMPORARY = ".tmp-flexvae-"


def output_names(
    names: Sequence[str], suffix: str | Callable[[str], str], reserved: Iterable[str] = ()
) -> dict[str, str]:
    """An output name for every input name, no two alike, a function of the set of names alone.

    `a/b.jpg` becomes `a/b.png`. Where two would meet, or one would meet a folder or a reserved name, each of them keeps
    its extension as well: `b.jpg.png`. Where they still meet, as names do that differ only in case or in how Unicode
    spells an accent (some file systems take those for one name), or where a name grows too long, a hash is added.

    Args:
        names: paths below the input folder, with forward slashes, no two the same.
        suffix: of the outputs, as in `.png`, or what gives it for the name of an input.
        reserved: names that something else will have.
    """
    folders = {str(parent) for name in names for parent in PurePosixPath(name).parents}
    taken = {_folded(name) for name in (*reserved, *folders)}
    level = dict.fromkeys(names, 0)
    ends = {name: suffix if isinstance(suffix, str) else suffix(name) for name in names}
    while True:
        outputs = {name: _candidate(name, ends[name], level[name]) for name in names}
        folded = {name: _folded(output) for name, output in outputs.items()}
        uses = Counter(folded.values())
        clashing = [name for name, key in folded.items() if uses[key] > 1 or key in taken]
        if not clashing:
            return outputs
        for name in clashing:
            level[name] += 1


def _folded(name: str) -> str:
    """The same for all names that some file system takes for one."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _candidate(name: str, suffix: str, level: int) -> str:
    """The output name at a level: 0 without the extension, 1 with it, from 2 on with a hash that differs by level."""
    folder, slash, base = name.rpartition("/")
    extension = PurePosixPath(base).suffix
    if level == 0 and base.lower().endswith(suffix):
        extension = base[-len(suffix) :]
    stem = base.removesuffix(extension) if level == 0 and _is_known(extension, suffix) else base
    room = MOST_BYTES - len(suffix)
    if level > 1 or len(os.fsencode(stem)) > room:
        mark = "~" + blake2b(os.fsencode(f"{level}/{name}"), digest_size=8).hexdigest()
        stem = os.fsencode(stem)[: room - len(mark)].decode("utf-8", "ignore") + mark
    return f"{folder}{slash}{stem}{suffix}"


def _is_known(extension: str, suffix: str) -> bool:
    """Whether an output no longer needs what an input's name ended in."""
    return extension.lower() == suffix or IMAGE_EXTENSION.fullmatch(extension) is not None


def open_output(root: Path, inputs: Iterable[Path], *, overwrite: bool) -> OutputFolder:
    """The folder that a command may write to, see `allowed_output`."""
    return OutputFolder(allowed_output(root, inputs, overwrite=overwrite))


def allowed_output(root: Path, inputs: Iterable[Path], *, overwrite: bool) -> Path:
    """The path, resolved, of a folder that a command may write to; nothing is created yet.

    Args:
        root: the folder.
        inputs: what the command reads; none of it may lie in `root` or around it.
        overwrite: whether `root` may hold something already; what a run that failed had to say is nothing.

    Raises:
        UsageError: it may not be written to.
    """
    place = root.resolve()
    for path in inputs:
        source = path.resolve()
        if place.is_relative_to(source) or source.is_relative_to(place):
            raise UsageError(
                f"the output must not lie in the input {path}, nor around it",
                where=str(root),
                hint="choose another output folder",
            )
    if root.exists() and not root.is_dir():
        raise UsageError("is not a folder", where=str(root), hint="choose another output folder")
    if not overwrite and root.is_dir() and any(path.name != BAD_FILES for path in root.iterdir()):
        raise UsageError("is not empty", where=str(root), hint="choose another output folder, or add --overwrite")
    return place


class OutputFolder:
    """A folder that files are written to, each of them whole or not at all.

    Args:
        root: the folder, resolved.
        shared: other processes write to it as well.
    """

    def __init__(self, root: Path, *, shared: bool = False) -> None:
        self.root = root
        self._temporary = f"{TEMPORARY}{os.getpid()}-{secrets.token_hex(4)}"  # processes of two machines share numbers
        for orphan in () if shared else root.glob(f"{TEMPORARY}*"):  # left by a process that was killed
            orphan.unlink(missing_ok=True)

    def path(self, name: str) -> Path:
        """Where the output of that name lies.

        Raises:
            UsageError: outside the folder, or behind a link.
        """
        path = self.root / name
        if not path.is_relative_to(self.root) or path.parent.resolve() != path.parent:
            raise UsageError("leads out of the output folder, or through a link", where=str(path))
        return path

    def write(self, name: str, data: bytes | memoryview) -> Digest:
        """Put a file in place at one stroke, instead of one that may be there.

        Raises:
            UsageError: see `path`.
            ResourceError: the disk is full or the folder cannot be written.
        """
        path = self.path(name)
        temporary = self.root / self._temporary
        with writing(path, len(data)):
            make_directory(path.parent)
            try:
                digest = write_new(temporary, [data])
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
        return digest

    def write_image(self, name: str, image: Image.Image) -> None:
        """Put a PNG file in place; see `write`."""
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        self.write(name, buffer.getbuffer())

    def remove(self, name: str) -> None:
        """Remove a file, where there is one.

        Raises:
            UsageError: see `path`.
            ResourceError: it cannot be removed.
        """
        path = self.path(name)
        with writing(path):
            path.unlink(missing_ok=True)


def faults_jsonl(faults: Iterable[Fault]) -> bytes:
    """`bad_files.jsonl`: one line `{"name", "reason"}` per file."""
    return "".join(json.dumps(fault._asdict()) + "\n" for fault in faults).encode()
