"""What training tells: the terminal, the log file, metrics.jsonl, TensorBoard and every callback read these.

Steps are counted from 1; an event of step 10 tells of what is behind the tenth.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Started:
    """The run begins, or goes on behind `step`; `run` is its directory, whose `config.json` has the settings."""

    step: int
    max_steps: int
    steps_per_epoch: int
    device: str
    parameters: int
    training_images: int
    validation_images: int
    resumed: bool
    run: Path = Path()


@dataclass(frozen=True, slots=True)
class Noticed:
    """Something that a person should know and that does not end the run."""

    text: str


@dataclass(frozen=True, slots=True)
class BadFileMet:
    """An input file that cannot be used; another one stands in for it."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Skipped:
    """The update of step `step`, counted from 1, was skipped: its loss or gradient was not finite."""

    step: int
    path: Path


@dataclass(frozen=True, slots=True)
class Advanced:
    """One more step is taken; for progress bars."""

    step: int


@dataclass(frozen=True, slots=True)
class Logged:
    """Means over the steps since the last one: losses, `lr`, `images_per_second`, `data_wait` (a share of the time)."""

    step: int
    values: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Validated:
    """Means over the validation images: losses, `psnr` in dB, `ssim`."""

    step: int
    values: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Previewed:
    """A picture of samples and their reconstructions is drawn."""

    step: int
    path: Path


@dataclass(frozen=True, slots=True)
class Saved:
    """A checkpoint is written, whole and on disk."""

    step: int
    path: Path


@dataclass(frozen=True, slots=True)
class Finished:
    """The end: all steps are taken, or a signal asked to stop (`signal` is its number, else 0)."""

    step: int
    seconds: float
    signal: int = 0


Event = Started | Noticed | BadFileMet | Skipped | Advanced | Logged | Validated | Previewed | Saved | Finished
