"""Models on disk: found where a person points, checked, read, and exported as bundles.

A model is `model.safetensors` and `model.json`, in a checkpoint or alone in a directory, a bundle, that needs nothing
else.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flexvae_cli.engine.checkpoint import MODEL, STATE, TRAINING, WEIGHTS, newest_whole, read_checkpoint
from flexvae_cli.engine.files import make_directory, publish_directory, temporary_directory, write_new, writing
from flexvae_cli.engine.folders import require_new
from flexvae_cli.engine.reading import chunks_of, reading
from flexvae_cli.engine.rundir import step_directories
from flexvae_cli.engine.sealed import given, read_sealed, require_digest, write_sealed
from flexvae_cli.engine.tensorfiles import (
    PICKLE_SUFFIXES,
    digest_of_tensors,
    read_tensors,
    refuse_pickle,
    write_tensors,
)
from flexvae_cli.errors import ModelError, Problem

if TYPE_CHECKING:
    from torch import Tensor

ABOUT_BITS = ("tensors", "layers")  # of `quantized`: name -> bits and shape, and the place of a layer -> bits
RAW = "weights."  # part of a checkpoint's training tensors that keeps the raw weights under a running mean
_EXPECTED = "give a run directory, a checkpoint, or a bundle made by `flexvae export`"


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A model on disk whose files were found to be whole.

    Attributes:
        path: the directory, a bundle or a checkpoint.
        model: its description, as it was given to `save_checkpoint`.
        weights_hash: sha256 of the weights file, or of what it would be for raw weights.
        passed_over: newer checkpoints of the same run that are damaged.
        raw: whether it has the weights that training steps from, not their running mean.
    """

    path: Path
    model: dict[str, Any]
    weights_hash: str
    passed_over: tuple[Problem, ...] = ()
    raw: bool = False

    def weights(self) -> dict[str, Tensor]:
        """Weights and buffers by name, on the host; those of few bits as the numbers that they stand for.

        Raises:
            ModelError: they are damaged, or not what the description says.
        """
        weights = read_tensors(self.path / WEIGHTS)
        if self.quantized:
            from flexvae_cli.engine.quantization.packed import unpacked_weights  # torch, which a look does without

            weights = unpacked_weights(weights, self.quantized["tensors"], self.path)
        return weights | _raw_weights(self.path) if self.raw else weights

    @property
    def quantized(self) -> dict[str, Any]:
        """What the description says of weights in few bits; empty where there are none.

        Raises:
            ModelError: it is garbled.
        """
        about = self.model.get("quantized", {})
        if not isinstance(about, dict) or (about and not all(isinstance(about.get(key), dict) for key in ABOUT_BITS)):
            raise ModelError("the model's description garbles 'quantized'", where=str(self.path))
        return about


def read_model(path: Path) -> ModelFiles:
    """Reads the model of a bundle or a checkpoint directory after comparing it with its sha256.

    Raises:
        ModelError: it is damaged, incomplete, or of another format version.
    """
    refuse_pickle(path / WEIGHTS)
    content = read_sealed(path / MODEL)
    require_digest(path / WEIGHTS, {"sha256": content.get("weights")})
    return ModelFiles(path, given(content), content["weights"])


def raw_model(found: ModelFiles) -> ModelFiles:
    """The same model with the weights that training steps from in the place of their running mean.

    Latent statistics are left out: they are those of the mean.

    Raises:
        ModelError: the model has one set of weights only, or is damaged.
    """
    raw = _raw_weights(read_checkpoint(found.path).path) if (found.path / STATE).exists() else {}
    if not raw:
        raise ModelError("the model has one set of weights only", where=str(found.path), hint="leave --weights raw out")
    model = {key: value for key, value in found.model.items() if key not in ("ema", "latents")}
    return replace(
        found, model=model, weights_hash=digest_of_tensors(read_tensors(found.path / WEIGHTS) | raw), raw=True
    )


def _raw_weights(checkpoint: Path) -> dict[str, Tensor]:
    """The parameters that training steps from; buffers are those of the model."""
    tensors = read_tensors(checkpoint / TRAINING)
    return {name.removeprefix(RAW): tensor for name, tensor in tensors.items() if name.startswith(RAW)}


def find_model(path: Path, *, raw: bool = False) -> ModelFiles:
    """The model that a person means: a run, its `ckpt`, a checkpoint, a bundle, or a file in one of the last two.

    Of a run it is the newest checkpoint whose model is whole.

    Args:
        path: where the person points.
        raw: whether the weights that training steps from are meant, not their running mean.

    Raises:
        ModelError: there is none, or it is damaged; the text says what is there instead.
    """
    found = _find(path)
    return raw_model(found) if raw else found


def _find(path: Path) -> ModelFiles:
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
        return replace(newest, passed_over=tuple(problems))
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


def export_bundle(source: Path, target: Path, *, raw: bool = False) -> ModelFiles:
    """Copies the model that `find_model` sees in `source` into a new directory that needs nothing else.

    Raises:
        ModelError: `source` is no model, or a damaged one.
        UsageError: `target` is there already and not an empty directory.
        DiskFullError: there is no room; nothing is left behind.
    """
    return write_bundle(find_model(source, raw=raw), target)


def write_bundle(
    found: ModelFiles, target: Path, tensors: dict[str, Tensor] | None = None, **changes: Any
) -> ModelFiles:
    """`export_bundle` for a model that was found already.

    Args:
        found: the model.
        target: the directory.
        tensors: what the copy's weights file has instead.
        changes: keys of the description that the copy has otherwise.

    Raises:
        ModelError: the model has been damaged or removed since it was found.
    """
    with reading(found.path):
        needed = sum((found.path / name).stat().st_size for name in (WEIGHTS, MODEL))
    with writing(target, needed):
        require_new(target)
        make_directory(target.parent)
        with temporary_directory(target.absolute().with_name(f".tmp-{os.getpid()}-{target.name}")) as temporary:
            if tensors is not None or found.raw:
                digest = write_tensors(temporary / WEIGHTS, found.weights() if tensors is None else tensors)
            else:
                digest = write_new(temporary / WEIGHTS, chunks_of(found.path / WEIGHTS))
            if tensors is not None or found.raw or changes:
                write_sealed(temporary / MODEL, found.model | changes, weights=digest.sha256)
            else:
                write_new(temporary / MODEL, chunks_of(found.path / MODEL))
            read_model(temporary)
            publish_directory(temporary, target)
    return ModelFiles(target, found.model | changes, digest.sha256, found.passed_over)


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
