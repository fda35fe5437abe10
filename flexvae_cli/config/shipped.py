"""The configs that come with FlexVAE: what there is, and how one is written out."""

from __future__ import annotations

import os
from pathlib import Path

from flexvae_cli.config import load_config, shipped_configs
from flexvae_cli.config.layers import read_files
from flexvae_cli.errors import Problem, UsageError, did_you_mean


def summaries() -> dict[str, str]:
    """The name of each shipped config, and the comment that it begins with."""
    return {path.stem: _first_comment(path) for path in sorted(shipped_configs().glob("*.toml"))}


def _first_comment(path: Path) -> str:
    lines = path.read_text(encoding="utf-8").splitlines()
    return next((line.lstrip("# ") for line in lines if line.startswith("#")), "")


def files_of(name: str) -> list[Path]:
    """A shipped config, what it extends and the structure files it names, relative to `shipped_configs()`.

    Raises:
        UsageError: there is no such config.
    """
    known = summaries()
    if name not in known:
        there = "; ".join(f"{n}: {summary}" for n, summary in known.items())
        raise UsageError(f"no config '{name}' ships with FlexVAE{did_you_mean(name, known)}", hint=f"there is {there}")
    folder = Path(os.path.realpath(shipped_configs()))
    path = folder / f"{name}.toml"
    settings = load_config(path).settings
    chain = [Path(layer.name) for layer in reversed(read_files(path))]
    structures = [settings.model.encoder, settings.model.decoder]
    if settings.adversarial is not None:
        structures.append(settings.adversarial.discriminator)
    files = [Path(os.path.realpath(file)).relative_to(folder) for file in (*chain, *structures)]
    return list(dict.fromkeys(files))


def write_out(name: str, into: Path, force: bool = False) -> list[Path]:
    """Writes a shipped config and its structure files below `into / "configs"`.

    Args:
        name: the config, without `.toml`.
        into: the folder that gets the folder `configs`.
        force: replace files that are there and differ.

    Returns:
        The files, the config first.

    Raises:
        UsageError: there is no such config, a file is there and differs, or one cannot be written.
    """
    contents = {into / "configs" / file: (shipped_configs() / file).read_bytes() for file in files_of(name)}
    try:
        differing = [path for path, data in contents.items() if os.path.lexists(path) and path.read_bytes() != data]
        if differing and not force:
            hint = "--force replaces it, --into DIR writes elsewhere"
            raise UsageError(*(Problem("is there already and differs", where=str(p), hint=hint) for p in differing))
        for path, data in contents.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    except OSError as error:
        raise UsageError(f"cannot be written: {error.strerror}", where=str(error.filename)) from None
    return list(contents)
