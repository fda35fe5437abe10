"""The config that a command is given."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flexvae_cli import ui

if TYPE_CHECKING:
    from flexvae_cli.config import Config


def loaded_config(path: Path | None, overrides: Sequence[str] | None) -> Config:
    """Load a config, the working directory's where `path` is None; what is to be told of `overrides` is said.

    Raises:
        UsageError: with every problem, each with its file and line.
    """
    from flexvae_cli.config import find_config, load_config

    config = load_config(find_config(path), overrides or ())
    for note in config.notes:
        ui.say(f"note: {note}")
    return config
