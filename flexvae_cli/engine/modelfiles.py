"""Models on disk: found where a person points, checked, read, and exported as bundles.

A model is `model.safetensors` and `model.json`, in a checkpoint or alone in a directory, a bundle, that needs nothing
else.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flexvae_cli.engine.checkpoint import MODEL, WEIGHTS, newest_whole
from flexvae_cli.engine.files import make_directory, publish_directory, temporary_directory, write_new, writing
from flexvae_cli.engine.reading import chunks_of
from flexvae_cli.engine.rundir import step_directories
from flexvae_cli.engine.sealed import given, read_sealed, require_digest
from flexvae_cli.engine.tensorfiles import PICKLE_SUFFIXES, read_tensors, refuse_pickle
from flexvae_cli.errors import ModelError, Problem, UsageError

if TYPE_CHECKING:
    from torch import Tensor

_EXPECTED = "give a run directory, a checkpoint, or a bundle made by `flexvae export`"


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A model on disk whose files were found to be whole.

    Attributes:
        path: the directory, a bundle or a checkpoint.
        model: its description, as it was given to `save_checkpoint`.
        weights_hash: sha256 of the weights file.
        passed_over: newer checkpoints of the same run that are damaged.
    """

    path: Path
    model: dict[str, Any]
    weights_hash: str
    passed_over: tuple[Problem, ...] = ()

    def weights(self) -> dict[str, Tensor]:
        """Weights and buffers by name, on the host."""
        return read_tensors(self.path / WEIGHTS)


def read_model(path: Path) -> ModelFiles:
    """Reads the model of a bundle or a checkpoint directory after comparing it with its sha256.

    Raises:
        ModelError: it is damaged, incomplete, or of another format version.
    """
    refuse_pickle(path / WEIGHTS)
    content = read_sealed(path / MODEL)
    require_digest(path / WEIGHTS, {"sha256": content.get("weights")})
    return ModelFiles(path, given(content), content["weights"])


def find_model(path: Path) -> ModelFiles:
    """The model that a person means: a run, its `ckpt`, a checkpoint, a bundle, or a file in one of the last two.

    Of a run it is the newest checkpoint whose model is whole.

    Raises:
        ModelError: there is none, or it is damaged; the text says what is there instead.
    """
    refuse_pickle(path)
    if path.name in {WEIGHTS, MODEL} and path.is_file():
        path = path.parent
    if not path.exists():
        raise ModelError("no such file or directory", where=str(path), hint=_EXPECTED)
    if (path / MODEL).exists() or (path / WEIGHTS).exists():
        return read_model(path)
    if not path.is_dir():
        raise ModelError("is not a model", where=str(path), hint=_EXPECTED)
    checkpoints = path if step_directories(path) or path.name == "ckpt" else path / "ckpt"
    newest, problems = newest_whole(checkpoints, read_model)
    if newest is not None:
        return ModelFiles(newest.path, newest.model, newest.weights_hash, tuple(problems))
    raise ModelError(*problems) if problems else _no_model(path)


def _no_model(path: Path) -> ModelError:
    if (path / "config.json").exists() or (path / "ckpt").is_dir() or path.name == "ckpt":
        return ModelError(
            "holds no checkpoint yet", where=str(path), hint="train first, or wait for the first checkpoint"
        )
    pickles = sorted(p.name for p in path.iterdir() if p.suffix.lower() in PICKLE_SUFFIXES)
    if pickles:
        what = f"holds no model of FlexVAE's; pickle refused: {pickles[0]} can run any program"
        return ModelError(what, where=str(path), hint=_EXPECTED)
    return ModelError("holds no model", where=str(path), hint=_EXPECTED)


def export_bundle(source: Path, target: Path) -> ModelFiles:
    """Copies the model that `find_model` sees in `source` into a new directory that needs nothing else.

    Raises:
        ModelError: `source` is no model, or a damaged one.
        UsageError: `target` is there already and not an empty directory.
        DiskFullError: there is no room; nothing is left behind.
    """
    found = find_model(source)
    with writing(target, sum((found.path / name).stat().st_size for name in (WEIGHTS, MODEL))):
        if target.is_symlink() or (target.exists() and not (target.is_dir() and not any(target.iterdir()))):
            raise UsageError("is there already", where=str(target), hint="choose a new directory")
        make_directory(target.parent)
        with temporary_directory(target.absolute().with_name(f".tmp-{os.getpid()}-{target.name}")) as temporary:
            for name in (WEIGHTS, MODEL):
                write_new(temporary / name, chunks_of(found.path / name))
            read_model(temporary)
            publish_directory(temporary, target)
    return ModelFiles(target, found.model, found.weights_hash, found.passed_over)


def require_same_tensors(found: dict[str, Tensor], wanted: dict[str, Tensor], path: Path) -> None:
    """Refuses weights that do not fit what they are to be loaded into.

    Args:
        found: the tensors of a file.
        wanted: tensors with the names, shapes and types expected; values do not matter, nor does the device.
        path: the file, for the message.

    Raises:
        ModelError: names the tensors that are missing, unknown, or of another shape or type.
    """
    both = [name for name in wanted if name in found]
    kinds = {
        "lacks": [name for name in wanted if name not in found],
        "has unknown": [name for name in found if name not in wanted],
        "has another shape or type for": [
            f"{n} ({_layout(found[n])}, expected {_layout(wanted[n])})"
            for n in both
            if _layout(found[n]) != _layout(wanted[n])
        ],
    }
    problems = [
        Problem(
            f"{kind} {', '.join(names[:8])}" + (f" and {len(names) - 8} more" if len(names) > 8 else ""),
            where=str(path),
        )
        for kind, names in kinds.items()
        if names
    ]
    if problems:
        raise ModelError(*problems)


def _layout(tensor: Tensor) -> str:
    return f"{'x'.join(map(str, tensor.shape)) or 'scalar'} {str(tensor.dtype).removeprefix('torch.')}"
