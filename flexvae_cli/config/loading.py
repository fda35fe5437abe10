"""A config file: read, joined with what it extends and with `--set`, checked, and every problem told with its line."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from flexvae_cli.config.layers import read_files, read_overrides, user_expanded
from flexvae_cli.config.locate import KeyPath
from flexvae_cli.config.problems import problems, unknown_in_data
from flexvae_cli.config.settings import RelativePath, Settings, table_in
from flexvae_cli.config.settings.optimizer import unused_by
from flexvae_cli.errors import UsageError

DEFAULT_NAME = "flexvae.toml"


@dataclass(frozen=True)
class Config:
    """A checked config.

    Attributes:
        settings: the typed settings, defaults filled in, paths absolute.
        path: the file, as it was given.
        document: what the files and `--set` say, merged, paths absolute; plain values that fit TOML and JSON, and that
            `Settings.model_validate` takes again.
        notes: what is to be told of `--set`.
    """

    settings: Settings
    path: Path
    document: dict[str, Any]
    notes: tuple[str, ...] = ()


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Reads a config file.

    Args:
        path: the TOML file.
        overrides: `KEY=VALUE` each, as in `optimizer.lr=1e-3`; they win over the file, the last one over those
            before it.

    Raises:
        UsageError: with every problem, each with its file and line.
    """
    files, given = read_files(path), read_overrides(overrides)
    layers, document, notes = [*files, *given], dict[str, Any](), list[str]()
    for together in (*([file] for file in files), given):
        over = reduce(merged, (layer.values for layer in together), dict[str, Any]())
        document, notes = _without_other_optimizer(document, over)
        for layer in together:
            document = merged(
                _without_other_length(document, layer.values), with_absolute_paths(layer.values, Settings, layer.folder)
            )

    def where(key: KeyPath, missing: bool = False) -> str:
        """Where `key`, or what is around it, got its value last; what is missing is missed in a file."""
        around = [key[:length] for length in range(len(key), 0, -1)]
        asked = layers[: len(layers) - len(overrides)] if missing else layers
        return next((layer.where(p) for p in around for layer in reversed(asked) if layer.has(p)), str(path))

    unknown = unknown_in_data(document, where)
    try:
        settings = Settings.model_validate(document)
    except ValidationError as error:
        raise UsageError(*problems(error, document, where, unknown)) from None
    if unknown:
        raise UsageError(*unknown)
    return Config(settings, path, document, tuple(notes))


def _without_other_optimizer(
    document: dict[str, Any], over: Mapping[str, Any], path: str = ""
) -> tuple[dict[str, Any], list[str]]:
    """Where a later file, or `--set`, names an optimizer, what was said before and is of no use to that one goes.

    Returns:
        What stays, and a note of each key that does not.
    """
    stays, notes = dict(document), list[str]()
    for key, said in over.items():
        table = document.get(key)
        if not isinstance(table, dict) or not isinstance(said, dict):
            continue
        if key != "optimizer":
            stays[key], inside = _without_other_optimizer(table, said, f"{path}{key}.")
            notes += inside
        elif isinstance(name := said.get("name"), str):
            useless = [each for each in unused_by(name) if each in table]
            stays[key] = {each: value for each, value in table.items() if each not in useless}
            notes += [
                f"{path}optimizer.{each} of the config is left out: {name} makes no use of it" for each in useless
            ]
    return stays, notes


def _without_other_length(document: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """What a later layer says of the length of the run, in steps or in epochs, is in the place of what was said."""
    train, given = document.get("train"), over.get("train")
    if not isinstance(train, dict) or not isinstance(given, dict) or not {"max_steps", "epochs"} & given.keys():
        return document
    return {**document, "train": {key: value for key, value in train.items() if key not in ("max_steps", "epochs")}}


def json_schema() -> dict[str, Any]:
    """The JSON schema of a config file, for editors."""
    schema = Settings.model_json_schema()
    schema["properties"]["extends"] = {"type": "string", "description": "the config file that this one starts from"}
    return schema


def find_config(option: Path | None) -> Path:
    """The `--config` option, else `flexvae.toml` in the working directory.

    Raises:
        UsageError: where there is neither.
    """
    path = option or Path(DEFAULT_NAME)
    if option is None and not path.is_file():
        raise UsageError(
            f"no config was given, and there is no {DEFAULT_NAME} here",
            hint="give --config FILE, or write one with: flexvae config new quickstart",
        )
    return path


def shipped_configs() -> Path:
    """The folder of the configs that come with FlexVAE: inside an installed package, beside it in a checkout."""
    package = Path(__file__).parents[1]
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` upon `base`: tables are merged key by key, everything else is replaced."""
    result = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merged(result[key], value) if both else value
    return result


def with_absolute_paths(values: Mapping[str, Any], table: type[BaseModel], folder: Path) -> dict[str, Any]:
    """The values of a table, where the keys that are paths no longer depend on where they stand."""
    result = dict(values)
    for key, field in table.model_fields.items():
        value, annotation = values.get(key), field.annotation
        inner = table_in(annotation)
        if isinstance(value, dict) and inner is not None:
            result[key] = with_absolute_paths(value, inner, folder)
        elif isinstance(value, list) and inner is not None:
            result[key] = [with_absolute_paths(v, inner, folder) if isinstance(v, dict) else v for v in value]
        elif isinstance(value, str) and (
            _is_path(annotation) or any(isinstance(m, RelativePath) for m in field.metadata)
        ):
            result[key] = absolute(value, folder)
    return result


def _is_path(annotation: object) -> bool:
    """Whether a type, or a branch of a union, carries the mark `RelativePath`."""
    marks = getattr(annotation, "__metadata__", ())
    return any(isinstance(m, RelativePath) for m in marks) or any(map(_is_path, get_args(annotation)))


def absolute(value: str, folder: Path) -> str:
    """A path from `folder`, `~` expanded; what is no path (`builtin:scenery`, nothing, NUL) stays as it is."""
    if not value or "\0" in value or value.startswith("builtin:"):
        return value
    return os.path.normpath(folder / user_expanded(value))
