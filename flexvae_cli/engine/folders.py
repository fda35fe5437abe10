"""New folders that appear with all their files, or not at all, and in the place of nothing."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from flexvae_cli.engine.files import make_directory, publish_directory, temporary_directory, write_new, writing
from flexvae_cli.errors import UsageError


def require_new(target: Path) -> None:
    """Refuses to write a folder over anything.

    Raises:
        UsageError: `target` is there already and not an empty directory.
    """
    if target.is_symlink() or (target.exists() and not (target.is_dir() and not any(target.iterdir()))):
        raise UsageError("is there already", where=str(target), hint="choose a new directory")


def write_folder(target: Path, files: Mapping[str, bytes]) -> None:
    """Writes a new folder of files.

    Args:
        target: the folder.
        files: path below it, with forward slashes -> content.

    Raises:
        UsageError: `target` is there already and not an empty directory.
        ResourceError: it cannot be written; nothing is left behind.
    """
    with writing(target, sum(map(len, files.values()))):
        require_new(target)
        make_directory(target.absolute().parent)
        with temporary_directory(target.absolute().with_name(f".tmp-{os.getpid()}-{target.name}")) as temporary:
            for name, data in files.items():
                make_directory((temporary / name).parent)
                write_new(temporary / name, [data])
            publish_directory(temporary, target)
