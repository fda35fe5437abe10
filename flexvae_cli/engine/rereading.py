"""A trained model's files read as a config says, where that is not how its training read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flexvae_cli import plugins
from flexvae_cli.api.trace import Shape, text
from flexvae_cli.config.settings import DataTable
from flexvae_cli.engine.data.choosing import made
from flexvae_cli.engine.kind import kind_of
from flexvae_cli.errors import Problem, UsageError
from flexvae_cli.samples import data_problems

READING = ("background", "exif", "max_pixels", "draft")  # what a model records of `[data]` beside its reader
OF_THE_SAMPLE = ("rate", "scaling")  # parameters of readers that say what the net sees, not what a file holds


def reread(description: Mapping[str, Any], data: DataTable) -> dict[str, Any]:
    """A model's description with the preprocessing that a `[data]` asks for.

    What says which numbers of a file are read is taken from there where it is set: the reader with all its parameters,
    background, exif, max_pixels and draft. What says what a sample is, is the model's own.

    Args:
        description: the model's.
        data: the table of a config.

    Raises:
        UsageError: the samples would be others than the model takes, or the reader is none.
    """
    trained, how = kind_of(description), dict(description.get("preprocessing", {}))
    problems = data_problems(data, plugins.installed().registry) + _of_input(data, trained.shape)
    how |= {key: getattr(data, key) for key in READING if key in data.model_fields_set}
    given, fixed = dict(data.model_extra or {}), dict[str, Any]()
    if data.reader == trained.chosen.name:
        values = trained.chosen.values
        fixed = {key: values[key] for key in OF_THE_SAMPLE if values.get(key) is not None}
        problems += [
            Problem(f"is {given[key]}; the model was trained on {value}", f"data.{key}", hint="leave it out")
            for key, value in fixed.items()
            if given.get(key) not in (None, value)
        ]
    if problems:
        raise UsageError(*problems)
    if data.reader is not None:
        asked = made(plugins.installed().registry, data.reader, given | fixed).recorded()
        how |= asked if asked != trained.chosen.recorded() else {}
    return {**description, "preprocessing": how}


def _of_input(data: DataTable, trained: Shape) -> list[Problem]:
    """Sizes may differ, since files are taken whole."""
    if len(data.input) == len(trained) and data.input[0] == trained[0]:
        return []
    what = f"is {text(data.input)}; the model takes samples of {text(trained)}, of any size"
    return [Problem(what, "data.input", hint="another config, or MODEL, is meant")]
