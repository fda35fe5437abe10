"""What the commands that use a trained model have in common: their arguments, and the checks that need no torch."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from flexvae_cli import ui
from flexvae_cli.commands._loaded import loaded_config
from flexvae_cli.errors import DataError, ModelError, UsageError

if TYPE_CHECKING:
    from flexvae_cli.config.settings import Settings
    from flexvae_cli.engine.data.dataset import Fault
    from flexvae_cli.engine.model import Model
    from flexvae_cli.engine.modelfiles import ModelFiles
    from flexvae_cli.engine.naming import OutputFolder


class Weights(StrEnum):
    EMA = "ema"
    RAW = "raw"


DEVICES = re.compile(r"auto|cpu|mps|cuda(:[0-9]+)?")

DEVICE_HELP = "auto (the first GPU, else the CPU), cpu, cuda, cuda:1 or mps."
MODEL_HELP = "A run directory, a checkpoint, or a bundle made by `flexvae export`."
ModelArgument = Annotated[Path, typer.Argument(metavar="MODEL", help=MODEL_HELP)]
OptionalModel = Annotated[Path | None, typer.Argument(metavar="MODEL", help=MODEL_HELP, show_default=False)]
OptionalSource = Annotated[
    str | None,
    typer.Argument(
        metavar="INPUT",
        help="A file (image, sound, volume, array), a folder of them, or `builtin:scenery/val`.",
        show_default=False,
    ),
]
DataArgument = Annotated[
    str,
    typer.Argument(
        metavar="DATA", help="A file (image, sound, volume, array), a folder of them, or `builtin:scenery/val`."
    ),
]
OptionalOutput = Annotated[
    Path | None, typer.Argument(metavar="OUTPUT", help="The folder to write to.", show_default=False)
]
OutputArgument = Annotated[Path, typer.Argument(metavar="OUTPUT", help="The folder to write to.")]
DeviceOption = Annotated[str, typer.Option("--device", help=DEVICE_HELP)]
OptionalDevice = Annotated[
    str | None,
    typer.Option("--device", help=DEVICE_HELP, show_default="auto"),
]
WorkersOption = Annotated[
    int, typer.Option("--workers", min=0, help="Processes that read images; 0 reads in this one.")
]
MaxBadOption = Annotated[
    float,
    typer.Option(
        "--max-bad",
        min=0.0,
        max=1.0,
        help="Part of the files that may be bad; more, and more than ten, are an error.",
    ),
]
MAX_BAD = 0.01
BatchOption = Annotated[int, typer.Option("--batch-size", min=1, help="Most images in a batch.")]
WeightsOption = Annotated[
    Weights,
    typer.Option("--weights", help="Those that a model is used with, or those under the running mean of a checkpoint."),
]
ResizeOption = Annotated[
    str | None,
    typer.Option(
        "--resize",
        metavar="HxW",
        help="Scale every image to cover this size and take its centre.",
        show_default="images at their own size",
    ),
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Write to a folder that is not empty.")]


@dataclass(frozen=True, slots=True)
class Places:
    """What a command works on.

    Attributes:
        model: a run directory, checkpoint or bundle.
        source: an image, a folder, or a built-in set.
        output: the folder to write to.
        device: where to compute.
        settings: the config that filled in what the command line left out.
    """

    model: Path
    source: str
    output: Path
    device: str
    settings: Settings | None


def find_places(
    command: Literal["infer", "encode"],
    model: Path | None,
    source: str | None,
    output: Path | None,
    *,
    config: Path | None,
    overrides: list[str] | None,
    device: str | None,
) -> Places:
    """The command line, and a config for what it leaves out.

    A config is read where it is named, where `--set` is given, or where there are no positionals at all.

    Raises:
        UsageError: something is still missing, or the config is wrong.
    """
    settings = None
    given = (model, source, output)
    if config is not None or overrides or not any(given):
        settings = loaded_config(config, overrides).settings
        table = getattr(settings, command)
        model, source, output = model or settings.train.run_dir, source or table.input, output or table.output
    if model is None or source is None or output is None:
        names = {"MODEL": model, "INPUT": source, "OUTPUT": output}
        missing = " and ".join(name for name, value in names.items() if value is None)
        hint = f"give MODEL INPUT OUTPUT, or --config FILE with [{command}] input and output"
        raise UsageError(f"{command} lacks {missing}", hint=hint)
    return Places(model, source, output, device or (settings.train.device if settings else "auto"), settings)


def check_inputs(model: Path, *sources: str | Path, device: str) -> None:
    """Refuse what is not there, before anything heavy is imported.

    Raises:
        ModelError: there is no such model.
        DataError: there is no such input.
        UsageError: there is no such kind of device.
    """
    if not DEVICES.fullmatch(device):
        raise UsageError(f"--device: there is no '{device}'", hint="use auto, cpu, cuda, cuda:1 or mps")
    if not model.exists():
        raise ModelError("no such model", where=str(model), hint="give a run directory, a checkpoint or a bundle")
    for source in sources:
        if not str(source).startswith("builtin:") and not Path(source).exists():
            raise DataError("no such file or folder", where=str(source))


def source_path(source: str) -> list[Path]:
    """The path of a source that has one."""
    return [] if source.startswith("builtin:") else [Path(source)]


def model_files(path: Path, weights: Weights = Weights.EMA) -> ModelFiles:
    """The files of a model, verified; what was passed over on the way is said."""
    from flexvae_cli.engine.modelfiles import find_model

    found = find_model(path, raw=weights is Weights.RAW)
    for problem in found.passed_over:
        ui.warn(f"passed over: {problem}")
    return found


def load_on(
    found: ModelFiles,
    device: str,
    *,
    exact: bool = False,
    fuse: Literal["auto", "off"] = "auto",
    precision: str | None = None,
) -> Model:
    """The model, on a device.

    Args:
        found: its files.
        device: as it is written on the command line.
        exact: leave a GPU no arithmetic but fp32, to compare what it gives with others.
        fuse: as in `load_files`.
        precision: the arithmetic that it will be used with, as `--precision` has it.
    """
    from flexvae_cli.engine.device import choose_device, settle
    from flexvae_cli.engine.model import load_files
    from flexvae_cli.engine.precision import Precision

    settle()
    place, dtype = choose_device(device), None
    if exact:
        Precision("fp32", place)
    if precision is not None:
        dtype = Precision(precision, place, "--precision").dtype
    return load_files(found, device=place, fuse=fuse, dtype=dtype)


class Faults:
    """The files that could not be read: each is told once, on stderr and in `bad_files.jsonl`.

    Args:
        part: of all files that may be bad.
        files: how many there are.
    """

    def __init__(self, part: float, files: int) -> None:
        self.all: list[Fault] = []
        self.part, self.files = part, files

    def __call__(self, fault: Fault) -> None:
        """Put one on record.

        Raises:
            DataError: there are more by now than is put up with.
        """
        self.all.append(fault)
        ui.warn(f"{fault.name} {fault.reason}")
        self.check()

    def check(self) -> None:
        """Refuse to go on where there are too many."""
        from flexvae_cli.engine.data.tolerance import require_few_bad

        require_few_bad(len(self.all), self.files, self.part, "--max-bad ")

    def write(self, folder: OutputFolder) -> None:
        """Put them on record, where there are any; an older record goes."""
        from flexvae_cli.engine.naming import BAD_FILES, faults_jsonl

        if self.all:
            folder.write(BAD_FILES, faults_jsonl(self.all))
        else:
            folder.remove(BAD_FILES)


def parse_sides(text: str, option: str = "--size") -> tuple[int, ...]:
    """`16000`, `256x192` or `64x64x64` -> the sizes of one to three axes.

    Raises:
        UsageError: it is no size, or a giant one.
    """
    parts = text.split("x")
    sound = len(parts) <= 3 and all(re.fullmatch(r"[0-9]{1,9}", part, re.ASCII) and int(part) for part in parts)
    if not sound:
        raise UsageError(f"{option} wants sizes such as 16000, 256x256 or 64x64x64, not '{text}'")
    sides = tuple(int(part) for part in parts)
    if math.prod(sides) > 64_000_000:
        raise UsageError(f"{option} {text} has more than 64 million positions")
    return sides


def parse_size(text: str, option: str = "--size") -> tuple[int, int]:
    """`256x192` -> (256, 192): height and width.

    Raises:
        UsageError: it is no size, or a giant one.
    """
    match = re.fullmatch(r"([0-9]{1,5})x([0-9]{1,5})", text, re.ASCII)
    size = (int(match[1]), int(match[2])) if match else (0, 0)
    if min(size) < 1:
        raise UsageError(f"{option} wants height x width, as in 256x256, not '{text}'")
    if size[0] * size[1] > 64_000_000:
        raise UsageError(f"{option} {text} has more than 64 megapixels")
    return size
