"""What the options of `flexvae mem` may be, and which of them contradict."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flexvae_cli.config import Config


class Probe(Enum):
    """Whether to take real steps."""

    AUTO = "auto"
    NEVER = "never"
    ALWAYS = "always"


class Mode(Enum):
    """What is to fit."""

    TRAIN = "train"
    INFER = "infer"
    ENCODE = "encode"
    DECODE = "decode"


class Checkpointing(Enum):
    """What is computed again instead of kept."""

    OFF = "off"
    BLOCKS = "blocks"
    AUTO = "auto"


class Allocator(Enum):
    """How torch's allocator for CUDA is set up."""

    DEFAULT = "default"
    EXPANDABLE = "expandable"
    ENV = "env"


class NormDtype(Enum):
    """What norms compute in."""

    FP32 = "fp32"
    INPUT = "input"


def _refuse(what: str, where: str, hint: str) -> None:
    from flexvae_cli.errors import UsageError

    raise UsageError(what, where=where, hint=hint)


def require_used(mode: Mode, precision: str | None, training: list[str]) -> None:
    """Refuse options that the command which a mode stands for makes no use of."""
    from flexvae_cli.errors import Problem, UsageError

    what = f"counts for training alone, not for --mode {mode.value}"
    problems = [Problem(what, name, hint="leave it out") for name in training]
    if mode is Mode.DECODE and precision is not None:
        problems.append(Problem("`flexvae decode` computes in fp32 always", "--precision", hint="leave it out"))
    if problems:
        raise UsageError(*problems)


def require_one_input(config: Config) -> None:
    """Refuse to vary `data.input` where it is not the only one."""
    own = [f"phase[{number}].input" for number, table in enumerate(config.settings.phase) if table.input]
    own += ["data.max_aspect_ratio"] * (config.settings.data.max_aspect_ratio > 1)
    if own:
        _refuse(f"varies data.input alone, and there is {', '.join(own)}", "--max-resolution", "leave it out")


def require_writable(file: Path, changes: list[str], auto: bool) -> None:
    """Refuse a file that is there, or that would say nothing, before anything is computed."""
    if not changes and not auto:
        _refuse("would say nothing: no option changes the config", "--write", "give --checkpointing auto, say")
    if file.exists():
        _refuse(f"is there already: {file}", "--write", "name another file")
    if not file.parent.is_dir():
        _refuse(f"no such folder: {file.parent}", "--write", "make it first")


def require_consistent(measures: bool, gpu: str | None, device: str | None, predicting: list[str]) -> None:
    """Refuse options that would count for nothing."""
    from flexvae_cli.errors import Problem, UsageError

    problems = []
    if measures and gpu not in (None, "auto"):
        what = f"real steps are taken on this machine's device, not on '{gpu}'"
        problems.append(Problem(what, "--gpu", hint="leave --gpu or --probe always out"))
    if measures:
        what = "counts for predictions alone"
        problems += [Problem(what, name, hint="name a GPU with --gpu, or use --probe never") for name in predicting]
    elif device is not None:
        problems.append(Problem("says where to measure; a prediction is for --gpu", "--device", hint="leave it out"))
    if not measures and gpu is None:
        problems.append(Problem("a prediction is for a GPU", "--gpu", hint="name one, as in --gpu h100-80"))
    if problems:
        raise UsageError(*problems)
