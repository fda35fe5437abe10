"""A model whose files are read as a config says; see `engine.rereading`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from flexvae_cli.commands._model_arguments import Weights, model_files

if TYPE_CHECKING:
    from flexvae_cli.config.settings import Settings
    from flexvae_cli.engine.modelfiles import ModelFiles


def model_of(path: Path, settings: Settings | None, weights: Weights = Weights.EMA) -> ModelFiles:
    """`model_files`, for files that are read as a config says, where there is one.

    Raises:
        UsageError: that would make other samples than the model takes.
    """
    found = model_files(path, weights)
    if settings is None:
        return found
    from flexvae_cli.engine.rereading import reread

    return replace(found, model=reread(found.model, settings.data))


def names_reader(settings: Settings | None) -> bool:
    """Whether a config says which reader reads the files."""
    return settings is not None and settings.data.reader is not None
