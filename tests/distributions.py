"""Fake distributions in a folder, as an installer would leave them: their metadata and one module."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import distributions, entry_points
from pathlib import Path

from flexvae_cli import plugins
from flexvae_cli.entry_points import CORE, PLUGINS
from flexvae_cli.registry import Registered

HEAD = """
from flexvae_cli.api import hookimpl, layer, bottleneck, same

FLEXVAE_API = 1
"""
GOOD = (
    HEAD
    + """
@layer("{code}", trace=same)
def factory():
    \"\"\"A layer.\"\"\"

@hookimpl
def flexvae_layers():
    return [factory]
"""
)


class Folder:
    """A folder on `sys.path` that holds fake distributions."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(
        self,
        name: str,
        source: str | None,
        version: str = "1.2",
        value: str = "",
        group: str = PLUGINS,
        entry: str = "",
    ) -> str:
        """Install a distribution whose module is `source`, or is missing; returns the module's name.

        Args:
            value: what its entry point leads to; by default the module.
            group, entry: of the entry point; by default a plugin's, of the distribution's name.
        """
        module = f"plugin_of_{name.replace('-', '_')}"
        if source is not None:
            (self.path / f"{module}.py").write_text(source)
        info = self.path / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[{group}]\n{entry or name} = {value or module}\n")
        return module

    def load(self, environment: Mapping[str, str] | None = None) -> plugins.Plugins:
        """Load the core and what is in the folder, and nothing else that is installed."""
        points = [point for point in entry_points(group=PLUGINS) if point.dist and point.dist.name == CORE]
        for distribution in distributions(path=[str(self.path)]):
            points += distribution.entry_points.select(group=PLUGINS)
        return plugins.load(points, environment or {})

    def one(self, name: str, source: str | None, **given: str) -> plugins.Plugin:
        """Add a distribution, load everything, check that the rest is sound, and return what became of this one."""
        self.add(name, source, **given)
        loaded = self.load()
        assert isinstance(loaded.registry.find("layer", "C2d"), Registered)
        assert [p.state for p in loaded.found if p.distribution == "flexvae"] == ["ok", "ok"]
        return next(p for p in loaded.found if p.distribution == name)


def line_of(source: str, text: str) -> int:
    return next(n for n, line in enumerate(source.splitlines(), 1) if text in line)


def flexvae(folder: Folder, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """The real command, with the folder's distributions installed."""
    environment = {**os.environ, "PYTHONPATH": str(folder.path), **variables}
    command = [sys.executable, "-m", "flexvae_cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
