"""`[data]` looked at before anything is read: samples of one to three axes, and a reader that gives such."""

from __future__ import annotations

from flexvae_cli.api.readers import ReaderSpec
from flexvae_cli.config.settings import DataTable
from flexvae_cli.errors import Problem, did_you_mean
from flexvae_cli.parameters import bind_values
from flexvae_cli.registry import Registered, Registry

# keys that have no meaning for other files
OF_IMAGES = ("resize", "max_aspect_ratio", "min_size", "background", "exif", "draft")
MOST_AXES = 3
MOST_CHANNELS = 4  # of an image


def data_problems(data: DataTable, registry: Registry) -> list[Problem]:
    """What is wrong with `[data]`, as far as can be told without looking at a file."""
    axes = len(data.input) - 1
    if axes > MOST_AXES:
        return [Problem(f"data.input has {axes} axes of space; signals have 1, images 2, volumes 3")]
    problems = _reader_problems(data, registry)
    for key in ("source", "validation"):
        source = getattr(data, key)
        if isinstance(source, str) and source.startswith("builtin:"):
            problems += [problem for problem in _image_problems(data) if problem not in problems]
    if axes == 2 and data.reader in (None, "images"):
        problems += _size_problems(data)
    else:
        what = "a signal" if axes == 1 else "a volume" if axes == MOST_AXES else "what is no image"
        given = [key for key in OF_IMAGES if key in data.model_fields_set and _set(data, key)]
        given += ["flip"] * (axes != 2 and "flip" in data.model_fields_set and data.flip)
        problems += [Problem(f"data.{key} has no meaning for {what}", hint="leave it out") for key in given]
    return problems


def _set(data: DataTable, key: str) -> bool:
    """Whether a key was given another value than it has anyway."""
    return bool(getattr(data, key) != DataTable.model_fields[key].default)


def _reader_problems(data: DataTable, registry: Registry) -> list[Problem]:
    if data.reader is None:
        return []
    found = registry.find("reader", data.reader)
    if not isinstance(found, Registered):
        return [Problem(found.what, "data.reader", hint=found.hint)]
    problems: list[Problem] = []
    bind_values(found.spec, dict(data.model_extra or {}), "data", problems)
    axes = len(data.input) - 1
    if isinstance(found.spec, ReaderSpec) and axes not in found.spec.axes:
        takes = " or ".join(str(each) for each in found.spec.axes)
        problems.append(Problem(f"{data.reader} gives samples of {takes} axes, data.input has {axes}", "data.reader"))
    if isinstance(found.spec, ReaderSpec) and not found.spec.mirrors and "flip" in data.model_fields_set and data.flip:
        problems.append(Problem(f"data.flip has no meaning for {data.reader}", hint="leave it out"))
    keys = [param.name for param in found.spec.params]
    return [_with_settings(problem, keys) for problem in problems]


def _with_settings(problem: Problem, keys: list[str]) -> Problem:
    """A key that is unknown may be a misspelt setting of `[data]` as well as of the reader."""
    key = problem.where.rpartition(".")[2]
    if key in keys or "parameter" not in problem.what:
        return problem
    meant = did_you_mean(key, [*DataTable.model_fields, *keys])
    return Problem(
        f"is neither a setting of [data] nor a parameter of the reader{meant}", problem.where, hint=problem.hint
    )


def _image_problems(data: DataTable) -> list[Problem]:
    if len(data.input) != MOST_AXES:
        return [Problem("data.input: images are channels x height x width, as in '3x256x256'")]
    if data.input[0] > MOST_CHANNELS:
        count = data.input[0]
        return [Problem(f"data.input: images have 1 to 4 channels (grey, grey + alpha, RGB, RGBA), not {count}")]
    return []


def _size_problems(data: DataTable) -> list[Problem]:
    if data.max_aspect_ratio > 1 and data.input[0] > MOST_CHANNELS:
        what = f"is for images of 1 to {MOST_CHANNELS} channels, which are scaled; data.input has {data.input[0]}"
        return [Problem(what, "data.max_aspect_ratio", hint="leave it out")]
    if data.max_aspect_ratio > 1 and data.resize == "none":
        what = "scales images to the shapes of buckets, and data.resize = 'none' scales none"
        return [Problem(what, "data.max_aspect_ratio", hint="leave one of them out")]
    if data.resize != "none" or not 0 < data.min_size < min(data.input[1:]):
        return []
    what = f"data.min_size {data.min_size} is below the input, and data.resize = 'none' does not enlarge"
    return [Problem(what, hint="use resize = 'cover', or leave min_size out")]
