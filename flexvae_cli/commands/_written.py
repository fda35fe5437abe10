"""The config that `flexvae mem --write` leaves: what was asked for, on top of the config that it was asked of."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flexvae_cli import ui


def write_config(file: Path, base: Path, changes: Sequence[str], recomputed: tuple[str, ...] | None) -> None:
    """Write a config that extends another one.

    Args:
        file: to write.
        base: what it extends.
        changes: `KEY=VALUE` each, as `--set` takes them.
        recomputed: entries for `train.activation_checkpointing`, where they were chosen.
    """
    from flexvae_cli.config.layers import read_overrides
    from flexvae_cli.config.loading import merged, with_absolute_paths
    from flexvae_cli.config.settings import Settings
    from flexvae_cli.config.toml_writer import to_toml
    from flexvae_cli.engine.files import replace_file

    document: dict[str, Any] = {}
    for layer in read_overrides(changes):
        document = merged(document, with_absolute_paths(layer.values, Settings, layer.folder))
    if recomputed is not None:
        document = merged(document, lines_for(recomputed))
    extends = os.path.relpath(os.path.realpath(base), os.path.realpath(file.parent))
    replace_file(file, to_toml({"extends": extends, **document}).encode())
    ui.say(f"wrote {file}")


def lines_for(recomputed: tuple[str, ...]) -> dict[str, Any]:
    """The keys of a config that recompute these entries."""
    return {"train": {"activation_checkpointing": list(recomputed) or "off"}}
