"""Checkpoints, bundles, and what makes either a model.

A checkpoint is a directory that appears under its name only when all of it is on disk:

    model.safetensors      weights and buffers of the autoencoder
    model.json             its description, and the sha256 of model.safetensors
    optimizer.safetensors  tensors that only training needs
    state.json             the step, what else training needs, the sha256 and size of the other three

A bundle is the first two alone. Either JSON file carries a seal, the sha256 of its own content. There is no pointer to
the latest checkpoint: it is the one with the highest step in which every sha256 is right.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from flexvae_cli.engine.files import (
    PICKLE_SUFFIXES,
    Digest,
    chunks_of,
    digest_of,
    discard_directory,
    fsync_directory,
    json_bytes,
    make_directory,
    publish_directory,
    read_json,
    read_tensors,
    reading,
    refuse_pickle,
    regular,
    seal_of,
    temporary_directory,
    tensor_bytes,
    write_new,
    write_tensors,
    writing,
)
from flexvae_cli.engine.rundir import step_directories, step_of
from flexvae_cli.errors import ModelError, Problem, UsageError

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 1
FEWEST_KEPT = 2  # the newest checkpoint may yet turn out damaged
WEIGHTS, MODEL, OPTIMIZER, STATE = "model.safetensors", "model.json", "optimizer.safetensors", "state.json"
_RESERVED = {"format", "weights", "step", "files", "seal"}
_EXPECTED = "give a run directory, a checkpoint, or a bundle made by `flexvae export`"
Found = TypeVar("Found")


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


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint whose files were found to be whole.

    Attributes:
        path: its directory.
        step: the optimizer steps taken.
        model: the model's description, as it was given to `save_checkpoint`.
        state: the state of training, as it was given to `save_checkpoint`.
    """

    path: Path
    step: int
    model: dict[str, Any]
    state: dict[str, Any]

    def weights(self) -> dict[str, Tensor]:
        """Weights and buffers of the autoencoder by name, on the host."""
        return read_tensors(self.path / WEIGHTS)

    def optimizer(self) -> dict[str, Tensor]:
        """The tensors that only training needs by name, on the host."""
        return read_tensors(self.path / OPTIMIZER)


# ----------------------------------------------------------------------------------------------------------- saving


def save_checkpoint(
    run_dir: Path,
    step: int,
    *,
    weights: dict[str, Tensor],
    model: dict[str, Any],
    optimizer: dict[str, Tensor],
    state: dict[str, Any],
    keep_last: int = FEWEST_KEPT,
) -> Path:
    """Writes a checkpoint, publishes it, and only then removes older ones.

    Training is a function of the step, so a whole checkpoint of the same step is left as it is; a damaged one is
    replaced.

    Args:
        run_dir: the run directory, which the caller holds.
        step: the optimizer steps taken.
        weights: weights and buffers of the autoencoder, on any device.
        model: the model's description, of JSON values.
        optimizer: tensors that only training needs, on any device.
        state: what else training needs, of JSON values.
        keep_last: checkpoints kept, this one included; never fewer than two.

    Returns:
        The directory of the checkpoint.

    Raises:
        DiskFullError: there is no room; the older checkpoints are intact and nothing is left half written.
        ResourceError: the run directory cannot be written.
        ValueError, TypeError: a dict uses a reserved key or holds what JSON or safetensors cannot.
    """
    checkpoints = run_dir / "ckpt"
    final = checkpoints / f"step-{step:08d}"
    with writing(final, tensor_bytes(weights) + tensor_bytes(optimizer)):
        make_directory(checkpoints)
        if _is_whole(final):
            fsync_directory(checkpoints)  # where that failed the first time
        else:
            if final.is_dir() and not final.is_symlink():
                discard_directory(final)
            with temporary_directory(run_dir / f".tmp-{os.getpid()}-{step}") as temporary:
                files = {WEIGHTS: write_tensors(temporary / WEIGHTS, weights)}
                files[MODEL] = _write_sealed(temporary / MODEL, model, weights=files[WEIGHTS].sha256)
                files[OPTIMIZER] = write_tensors(temporary / OPTIMIZER, optimizer)
                digests = {name: digest._asdict() for name, digest in files.items()}
                _write_sealed(temporary / STATE, state, step=step, files=digests)
                publish_directory(temporary, final)
        for old in step_directories(checkpoints)[max(keep_last, FEWEST_KEPT) :]:
            discard_directory(old)
    return final


def _is_whole(path: Path) -> bool:
    try:
        read_checkpoint(path)
    except ModelError:
        return False
    return True


def _write_sealed(path: Path, value: dict[str, Any], **ours: Any) -> Digest:
    if taken := _RESERVED & value.keys():
        raise ValueError(f"{path.name} keeps the keys {sorted(taken)} for itself")
    content = {"format": FORMAT, **ours, **value}
    return write_new(path, [json_bytes({**content, "seal": seal_of(content)})])


# ---------------------------------------------------------------------------------------------------------- reading


def read_checkpoint(path: Path) -> Checkpoint:
    """Reads a checkpoint after comparing every file with its sha256.

    Raises:
        ModelError: it is damaged, incomplete, or of another format version.
    """
    content = _read_sealed(path / STATE)
    step, files = content.get("step"), content.get("files")
    if type(step) is not int or not isinstance(files, dict) or files.keys() != {WEIGHTS, MODEL, OPTIMIZER}:
        raise ModelError("lacks the step or the list of files", where=str(path / STATE))
    if step_of(path) not in {None, step}:
        raise ModelError(f"says step {step}; the directory was renamed", where=str(path / STATE))
    for name, digest in files.items():
        _compare(path / name, digest)
    model = _read_sealed(path / MODEL)
    if model.get("weights") != files[WEIGHTS]["sha256"]:
        raise ModelError(f"describes another {WEIGHTS}", where=str(path / MODEL))
    return Checkpoint(path, step, _given(model), _given(content))


def newest_checkpoint(run_dir: Path) -> tuple[Checkpoint | None, list[Problem]]:
    """The whole checkpoint with the highest step, and what is wrong with the newer ones that were passed over."""
    return _newest(run_dir / "ckpt", read_checkpoint)


def resume_checkpoint(run_dir: Path) -> tuple[Checkpoint | None, list[Problem]]:
    """`newest_checkpoint` for the process that holds the run and continues it.

    Damaged newer checkpoints become `ckpt/damaged-step-*`, where they are neither found again nor counted as kept.

    Raises:
        ModelError: there are checkpoints, and none of them is whole.
    """
    newest, problems = newest_checkpoint(run_dir)
    if newest is None and problems:
        none = Problem("no checkpoint is whole", where=str(run_dir), hint="start afresh in another train.run_dir")
        raise ModelError(*problems, none)
    for damaged in step_directories(run_dir / "ckpt"):
        if newest is not None and damaged == newest.path:
            break
        aside = damaged.with_name(f"damaged-{damaged.name}")
        with writing(aside):
            if aside.exists():
                discard_directory(aside)
            damaged.rename(aside)
    return newest, problems


def read_model(path: Path) -> ModelFiles:
    """Reads the model of a bundle or a checkpoint directory after comparing it with its sha256.

    Raises:
        ModelError: it is damaged, incomplete, or of another format version.
    """
    refuse_pickle(path / WEIGHTS)
    content = _read_sealed(path / MODEL)
    _compare(path / WEIGHTS, {"sha256": content.get("weights")})
    return ModelFiles(path, _given(content), content["weights"])


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
    newest, problems = _newest(checkpoints, read_model)
    if newest is not None:
        return ModelFiles(newest.path, newest.model, newest.weights_hash, tuple(problems))
    raise ModelError(*problems) if problems else _no_model(path)


def _newest(checkpoints: Path, read: Callable[[Path], Found]) -> tuple[Found | None, list[Problem]]:
    problems: list[Problem] = []
    for path in step_directories(checkpoints):
        try:
            return read(path), problems
        except ModelError as error:
            problems += error.problems
    return None, problems


def _read_sealed(path: Path) -> dict[str, Any]:
    content = read_json(path)
    version = content.get("format")
    if type(version) is not int or version < 1:
        raise ModelError("has no format version that FlexVAE ever wrote", where=str(path))
    if version > FORMAT:
        what = f"is of format {version}, from a newer FlexVAE; this one reads format {FORMAT}"
        raise ModelError(what, where=str(path), hint="pip install --upgrade flexvae")
    if content.pop("seal", None) != seal_of(content):
        raise ModelError("is damaged or was edited: its seal does not match its content", where=str(path))
    return content


def _compare(path: Path, digest: Any) -> None:
    """Refuses a file that is not the one that `digest`, a dict with `sha256` and perhaps `bytes`, was taken of."""
    refuse_pickle(path)
    with reading(path):
        size = regular(path).stat().st_size
        if not isinstance(digest, dict) or digest.get("bytes", size) != size:
            raise ModelError(f"is damaged or replaced: it has {size:,} bytes, not the recorded number", where=str(path))
        if digest.get("sha256") != digest_of(path).sha256:
            raise ModelError("is damaged or replaced: its sha256 is not the recorded one", where=str(path))


def _given(content: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in content.items() if key not in _RESERVED}


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


# ---------------------------------------------------------------------------------------------------------- bundles


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
