"""Checkpoints: all that training needs to go on, written as one.

A checkpoint is a directory that appears under its name only when all of it is on disk:

    model.safetensors     weights and buffers of the autoencoder, the running mean where training keeps one
    model.json            its description, and the sha256 of model.safetensors
    training.safetensors  tensors that only training needs, as `part.name`, see `parts.py`
    state.json            the step, what else training needs, the sha256 and size of the other three

The first two alone are a model, see `modelfiles.py`. Either JSON file carries a seal, the sha256 of its own content.
There is no pointer to the latest checkpoint: it is the one with the highest step in which every sha256 is right.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from flexvae_cli.engine.files import (
    discard_directory,
    fsync_directory,
    make_directory,
    publish_directory,
    temporary_directory,
    writing,
)
from flexvae_cli.engine.rundir import step_directories, step_of
from flexvae_cli.engine.sealed import given, read_sealed, require_digest, write_sealed
from flexvae_cli.engine.tensorfiles import read_tensors, tensor_bytes, write_tensors
from flexvae_cli.errors import ModelError, Problem

if TYPE_CHECKING:
    from torch import Tensor

FEWEST_KEPT = 2  # the newest checkpoint may yet turn out damaged
WEIGHTS, MODEL, TRAINING, STATE = "model.safetensors", "model.json", "training.safetensors", "state.json"
Found = TypeVar("Found")


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

    def training(self) -> dict[str, Tensor]:
        """The tensors that only training needs by name, on the host."""
        return read_tensors(self.path / TRAINING)


def save_checkpoint(
    run_dir: Path,
    step: int,
    *,
    weights: dict[str, Tensor],
    model: dict[str, Any],
    training: dict[str, Tensor],
    state: dict[str, Any],
    keep_last: int = FEWEST_KEPT,
    keep: Collection[int] = (),
    anew: bool = False,
) -> Path:
    """Writes a checkpoint, publishes it, and only then removes older ones.

    Training is a function of the step, so a whole checkpoint of the same step is left as it is; a damaged one is
    replaced.

    Args:
        run_dir: the run directory, which the caller holds.
        step: the optimizer steps taken.
        weights: weights and buffers of the autoencoder, on any device.
        model: the model's description, of JSON values.
        training: tensors that only training needs, on any device.
        state: what else training needs, of JSON values.
        keep_last: checkpoints kept, this one included; never fewer than two.
        keep: steps whose checkpoints are kept as well.
        anew: replace a whole checkpoint of the same step too: something that is no step was done since.

    Returns:
        The directory of the checkpoint.

    Raises:
        DiskFullError: there is no room; the older checkpoints are intact and nothing is left half written.
        ResourceError: the run directory cannot be written.
        ValueError, TypeError: a dict uses a reserved key or holds what JSON or safetensors cannot.
    """
    checkpoints = run_dir / "ckpt"
    final = checkpoints / f"step-{step:08d}"
    with writing(final, tensor_bytes(weights) + tensor_bytes(training)):
        make_directory(checkpoints)
        if not anew and _is_whole(final):
            fsync_directory(checkpoints)  # where that failed the first time
        else:
            with temporary_directory(run_dir / f".tmp-{os.getpid()}-{step}") as temporary:
                files = {WEIGHTS: write_tensors(temporary / WEIGHTS, weights)}
                files[MODEL] = write_sealed(temporary / MODEL, model, weights=files[WEIGHTS].sha256)
                files[TRAINING] = write_tensors(temporary / TRAINING, training)
                digests = {name: digest._asdict() for name, digest in files.items()}
                write_sealed(temporary / STATE, state, step=step, files=digests)
                if final.is_dir() and not final.is_symlink():
                    discard_directory(final)
                publish_directory(temporary, final)
        for old in step_directories(checkpoints)[max(keep_last, FEWEST_KEPT) :]:
            if step_of(old) not in keep:
                discard_directory(old)
    return final


def _is_whole(path: Path) -> bool:
    try:
        read_checkpoint(path)
    except ModelError:
        return False
    return True


def read_checkpoint(path: Path) -> Checkpoint:
    """Reads a checkpoint after comparing every file with its sha256.

    Raises:
        ModelError: it is damaged, incomplete, or of another format version.
    """
    content = read_sealed(path / STATE)
    step, files = content.get("step"), content.get("files")
    if type(step) is not int or not isinstance(files, dict) or files.keys() != {WEIGHTS, MODEL, TRAINING}:
        raise ModelError("lacks the step or the list of files", where=str(path / STATE))
    if step_of(path) not in {None, step}:
        raise ModelError(f"says step {step}; the directory was renamed", where=str(path / STATE))
    for name, digest in files.items():
        require_digest(path / name, digest)
    model = read_sealed(path / MODEL)
    if model.get("weights") != files[WEIGHTS]["sha256"]:
        raise ModelError(f"describes another {WEIGHTS}", where=str(path / MODEL))
    return Checkpoint(path, step, given(model), given(content))


def newest_checkpoint(run_dir: Path) -> tuple[Checkpoint | None, list[Problem]]:
    """The whole checkpoint with the highest step, and what is wrong with the newer ones that were passed over."""
    return newest_whole(run_dir / "ckpt", read_checkpoint)


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


def newest_whole(checkpoints: Path, read: Callable[[Path], Found]) -> tuple[Found | None, list[Problem]]:
    """What `read` makes of the newest checkpoint that it accepts, and what is wrong with the newer ones."""
    problems: list[Problem] = []
    for path in step_directories(checkpoints):
        try:
            return read(path), problems
        except ModelError as error:
            problems += error.problems
    return None, problems
