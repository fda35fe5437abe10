"""A plugin to be checked: the name of what is installed, or a folder that is laid out as if it were."""

from __future__ import annotations

import re
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, distribution, entry_points
from pathlib import Path
from typing import Any, NamedTuple

from flexvae_cli.entry_points import COMMANDS, PLUGINS
from flexvae_cli.errors import UsageError, did_you_mean
from flexvae_cli.paths import shown

GROUPS = (PLUGINS, COMMANDS)
"""The groups of entry points that FlexVAE reads."""


class Found(NamedTuple):
    """A distribution, and the folders that Python has to look in for it, before all others."""

    name: str
    version: str
    folders: tuple[Path, ...] = ()


def normal(name: str) -> str:
    """A distribution's name as all its spellings have it in common: `Flexvae_Sine` -> `flexvae-sine`."""
    return re.sub(r"[-_.]+", "-", name).lower()


@contextmanager
def found(target: str) -> Iterator[Found]:
    """The distribution that a folder with a `pyproject.toml` would be, or the installed one of that name.

    Raises:
        UsageError: it is neither.
    """
    folder = Path(target)
    if not folder.is_dir():
        yield _installed(target)
        return
    project = _project(folder / "pyproject.toml")
    with tempfile.TemporaryDirectory(prefix="flexvae-") as stage:
        name, version = str(project["name"]), str(project.get("version", "0"))
        _lay_out(Path(stage), name, version, project.get("entry-points", {}))
        code = [folder / "src"] if (folder / "src").is_dir() else []
        yield Found(name, version, (Path(stage), *(path.absolute() for path in (*code, folder))))


def _installed(name: str) -> Found:
    try:
        one = distribution(name)
    except (PackageNotFoundError, ValueError):
        known = {p.dist.name for group in GROUPS for p in entry_points(group=group) if p.dist}
        what = f"'{name}' is no folder, and no distribution of that name is installed"
        hint = f"there are {', '.join(sorted(known))}"
        raise UsageError(f"{what}{did_you_mean(name, known)}", hint=hint) from None
    return Found(one.name, one.version)


def _project(path: Path) -> Mapping[str, Any]:
    """The table `[project]` of a `pyproject.toml`."""
    if not path.is_file():
        raise UsageError("there is no pyproject.toml in it", where=shown(path.parent), hint="see docs/plugins.md")
    try:
        document = tomllib.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise UsageError(f"is not TOML: {error}", where=shown(path)) from None
    project = document.get("project", {})
    if not isinstance(project, dict) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", str(project.get("name", ""))):
        raise UsageError("has no [project] with a name", where=shown(path))
    if not isinstance(version := project.get("version", "0"), str) or not re.fullmatch(r"[A-Za-z0-9.+!_-]+", version):
        raise UsageError(f"has a version that is none: {version!r}", where=shown(path), hint='write version = "0.1.0"')
    points = project.get("entry-points", {})
    groups = [points.get(group, {}) for group in GROUPS] if isinstance(points, dict) else [None]
    if not all(isinstance(of, dict) and all(isinstance(value, str) for value in of.values()) for of in groups):
        raise UsageError('wants entry points as in [project.entry-points.flexvae] sine = "module"', where=shown(path))
    return project


def _lay_out(stage: Path, name: str, version: str, points: Mapping[str, Mapping[str, str]]) -> None:
    """What an installer would leave of the metadata."""
    info = stage / f"{normal(name).replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", "utf-8")
    sections = [(group, points[group]) for group in GROUPS if group in points]
    lines = [line for group, of in sections for line in (f"[{group}]", *(f"{key} = {of[key]}" for key in of))]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n", "utf-8")
