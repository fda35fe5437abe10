"""The one place that opens pickles: files of `torch.save`, read as plain tensors, to be written as safetensors.

torch's restricted reader builds tensors and containers and runs nothing. There is no way round it: a file that wants
more than that is refused.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from flexvae_cli.engine.files import fsync_directory, make_directory, require_space, writing
from flexvae_cli.engine.reading import reading, regular
from flexvae_cli.engine.tensorfiles import tensor_bytes, write_tensors
from flexvae_cli.errors import ModelError, Problem, UsageError

if TYPE_CHECKING:
    from torch import Tensor

MOST_LEVELS = 16  # dictionaries and lists within each other


@dataclass(frozen=True, slots=True)
class Imported:
    """What became of pickles.

    Attributes:
        tensors: name -> shape, of what was written.
        bytes: of their values.
        left_out: names of what is no tensor, or was not wanted.
    """

    tensors: dict[str, tuple[int, ...]]
    bytes: int
    left_out: tuple[str, ...]


def import_pickles(sources: Iterable[Path], target: Path, drop: Iterable[str] = ()) -> Imported:
    """Write the tensors of some files of `torch.save` into one new safetensors file.

    Tensors within dictionaries and lists are called by the way to them, as in `state_dict.encoder.0.weight`.

    Args:
        sources: the files.
        target: the new file.
        drop: patterns of the names to leave out, as in `classifier.*`.

    Raises:
        ModelError: a file cannot be read as plain tensors, has none, or two have one of the same name.
        UsageError: the target is there already, or is not called `.safetensors`.
        ResourceError: it cannot be written.
    """
    if target.suffix != ".safetensors":
        raise UsageError("the last file is the one to write, and is called .safetensors", where=str(target))
    if os.path.lexists(target):
        raise UsageError("is there already", where=str(target), hint="choose a new file")
    tensors: dict[str, Tensor] = {}
    left_out: list[str] = []
    origin: dict[str, Path] = {}
    for source in sources:
        for name, value in _leaves(read_pickle(source), source):
            if not isinstance(value, torch.Tensor) or any(fnmatchcase(name, pattern) for pattern in drop):
                left_out.append(name)
            elif value.device.type != "cpu":
                raise ModelError(f"the tensor '{name}' has no values", where=str(source))
            elif name in tensors:
                what = f"has a tensor '{name}', and so has {origin[name]}"
                raise ModelError(what, where=str(source), hint="import them into a file each")
            else:
                tensors[name], origin[name] = value, source
    if not tensors:
        raise ModelError(*(Problem("holds no tensors" + " that are left" * bool(left_out), str(s)) for s in sources))
    _write(target, tensors)
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    return Imported(shapes, tensor_bytes(tensors), tuple(left_out))


def read_pickle(path: Path) -> Any:
    """What `torch.save` wrote, where it is made of tensors, containers, numbers and texts.

    Raises:
        ModelError: it is anything else, or damaged; which of the two cannot be told.
    """
    with reading(path):
        regular(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch, zipfile and the restricted reader raise whatever they like
        what = "is no file of plain tensors made by torch.save: it holds other objects, or is damaged"
        hint = "save a dictionary of tensors: torch.save(model.state_dict(), FILE)"
        raise ModelError(what, where=str(path), hint=hint) from error


def _leaves(value: Any, source: Path, name: str = "", level: int = 0) -> Iterator[tuple[str, Any]]:
    """Everything that is no container, by the way to it."""
    if level > MOST_LEVELS:
        raise ModelError(f"nests more than {MOST_LEVELS} containers", where=str(source))
    if isinstance(value, Mapping):
        inner: Iterable[tuple[Any, Any]] = value.items()
    elif isinstance(value, list | tuple):
        inner = enumerate(value)
    else:
        yield name, value
        return
    for key, part in inner:
        yield from _leaves(part, source, f"{name}.{key}" if name else str(key), level + 1)


def _write(target: Path, tensors: dict[str, Tensor]) -> None:
    temporary = target.with_name(f".tmp-{os.getpid()}-{target.name}")
    require_space(target, tensor_bytes(tensors))  # few bytes of a file can claim to be a giant tensor
    with writing(target, tensor_bytes(tensors)):
        make_directory(target.parent)
        try:
            write_tensors(temporary, tensors)
            temporary.rename(target)
            fsync_directory(target.parent)
        except ValueError as error:
            raise ModelError(str(error), where=str(target)) from error
        finally:
            temporary.unlink(missing_ok=True)
