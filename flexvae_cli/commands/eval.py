"""`flexvae eval`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from flexvae_cli import __version__, ui
from flexvae_cli.commands._loaded import loaded_config
from flexvae_cli.commands._model_arguments import (
    MAX_BAD,
    BatchOption,
    DataArgument,
    DeviceOption,
    Faults,
    MaxBadOption,
    ModelArgument,
    OverwriteOption,
    Weights,
    WeightsOption,
    WorkersOption,
    check_inputs,
    load_on,
    source_path,
)
from flexvae_cli.commands._rereading import model_of, names_reader
from flexvae_cli.commands.options import ConfigOption, JsonOption, SetOption

if TYPE_CHECKING:
    from flexvae_cli.engine.data.sources import Item
    from flexvae_cli.engine.evaluation.measuring import Instruments, Measured
    from flexvae_cli.engine.evaluation.output import ResultFiles
    from flexvae_cli.engine.kind import Kind
    from flexvae_cli.engine.model import Model
    from flexvae_cli.engine.modelfiles import ModelFiles


class Rounding(StrEnum):
    NONE = "none"
    EIGHT_BIT = "8bit"


class Nets(NamedTuple):
    """The weight files of measures that need some."""

    lpips: Path | None
    inception: Path | None


def evaluate(
    model: ModelArgument,
    data: DataArgument,
    output: Annotated[
        Path | None,
        typer.Option("--output", help="A new folder, or a .json or .csv file, for the result.", show_default=False),
    ] = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Take only the first images.")] = None,
    rounding: Annotated[
        Rounding, typer.Option("--rounding", help="Round both images to the levels of an 8-bit file first.")
    ] = Rounding.NONE,
    lpips: Annotated[
        Path | None, typer.Option("--lpips", metavar="FILE", help="Weights of LPIPS.", show_default=False)
    ] = None,
    inception: Annotated[
        Path | None,
        typer.Option("--inception", metavar="FILE", help="Weights of FID's Inception, for rFID.", show_default=False),
    ] = None,
    weights: WeightsOption = Weights.EMA,
    batch_size: BatchOption = 8,
    device: DeviceOption = "auto",
    workers: WorkersOption = 2,
    max_bad: MaxBadOption = MAX_BAD,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure a model on images.

    PSNR, SSIM, MS-SSIM, the mean absolute error and the rate of every whole image, their means with 95 % intervals
    over the images, and a stamp that says how they were measured; LPIPS and rFID where their weights are given.
    --output writes eval.json and eval.csv; `flexvae compare` reads two of them. With --config, files are read as its
    table data says.
    """
    check_inputs(model, data, *(file for file in (lpips, inception) if file), device=device)
    files = None
    if output is not None:
        from flexvae_cli.engine.evaluation.output import open_results

        files = open_results(output, source_path(data), overwrite=overwrite)
    settings = loaded_config(config, overrides).settings if config is not None or overrides else None
    found = model_of(model, settings, weights)
    from flexvae_cli.engine.kind import samples_in

    kind, items = samples_in(found.model, data, where="DATA", named=names_reader(settings))
    items = items[:limit]
    faults = Faults(max_bad, len(items))
    try:
        result = _evaluate(found, kind, items, rounding, Nets(lpips, inception), faults, batch_size, device, workers)
    finally:
        if files is not None and files.whole_folder:
            faults.write(files.folder)
    if files is not None:
        _write(files, result)
    if as_json:
        ui.json(result)
    else:
        _print(result)
    if files is not None:
        ui.say(f"wrote {files.json} and {files.csv} to {files.folder.root}")


def _evaluate(
    found: ModelFiles,
    kind: Kind,
    items: list[Item],
    rounding: Rounding,
    nets: Nets,
    faults: Faults,
    batch_size: int,
    device: str,
    workers: int,
) -> dict[str, Any]:
    """Measure everything; returns what is in eval.json."""
    from flexvae_cli.engine.evaluation.measuring import measure
    from flexvae_cli.engine.evaluation.protocol import protocol_of
    from flexvae_cli.engine.evaluation.result import result_of
    from flexvae_cli.engine.inference import read_samples

    model = load_on(found, device, exact=True)
    instruments = _instruments(model, rounding, nets)
    each: list[Measured] = []
    with ui.progress(len(items), "images") as advance:
        samples = read_samples(model, items, workers=workers, report=faults, kind=kind)
        for image in measure(model, samples, instruments, batch_size):
            each.append(image)
            advance(len(each) + len(faults.all))
    measured = {image.name for image in each}
    protocol = protocol_of(model, [item for item in items if item.name in measured], instruments)
    return result_of(each, faults.all, instruments, model=_about(found), made_with=_versions(), protocol=protocol)


def _instruments(model: Model, rounding: Rounding, nets: Nets) -> Instruments:
    """torchvision's nets are imported where they are wanted."""
    from flexvae_cli.engine.evaluation.measuring import Instruments

    lpips, fid = None, None
    if nets.lpips:
        from flexvae_cli.engine.evaluation.perceptual import PerceptualDistance

        lpips = PerceptualDistance(nets.lpips, model)
    if nets.inception:
        from flexvae_cli.engine.evaluation.inception import ReconstructionFID

        fid = ReconstructionFID(nets.inception, model)
    return Instruments(rounding.value, lpips, fid)


def _about(found: ModelFiles) -> dict[str, Any]:
    return {
        "path": str(found.path),
        "weights": "ema" if found.model.get("ema") else "raw",
        "weights_hash": found.weights_hash,
        "bottleneck": found.model["bottleneck"],
        "input": found.model["input"],
    }


def _versions() -> dict[str, str]:
    import torch

    return {"flexvae": __version__, "torch": torch.__version__}


def _write(files: ResultFiles, result: dict[str, Any]) -> None:
    from flexvae_cli.engine.evaluation.result import csv_bytes
    from flexvae_cli.engine.reading import json_bytes

    files.folder.write(files.csv, csv_bytes(result))
    files.folder.write(files.json, json_bytes(result))


def _print(result: dict[str, Any]) -> None:
    from flexvae_cli.engine.evaluation.measures import MEASURES

    titles = ("mean", "95 % interval", "median", "min", "max", "images")
    rows = []
    for measure in MEASURES:
        if (found := result["totals"].get(measure.key)) is None:
            ui.say(f"{measure.title}: not measured ({result['not_measured'][measure.key]})")
            continue
        low, high = found["interval"] or (None, None)
        interval = "-" if low is None else f"{low:.{measure.digits}f} to {high:.{measure.digits}f}"
        mean, *others = (f"{found[key]:.{measure.digits}f}" for key in ("mean", "median", "min", "max"))
        rows.append((measure.title, mean, interval, *others, f"{found['count']:,}"))
    optional = {"median": 2, "min": 1, "max": 1}  # left out on a narrow terminal
    columns = (ui.Column(title, number=True, optional=optional.get(title, 0)) for title in titles)
    ui.table([ui.Column(""), *columns], rows)
    if result["rfid"] is None:
        ui.say(f"rFID: not measured ({result['not_measured']['rfid']})")
    else:
        ui.data(f"rFID: {result['rfid']:.3f} over {result['count']:,} images")
    if result["identical"]:
        ui.say("note: identical images have an infinite PSNR and are left out of its numbers")
