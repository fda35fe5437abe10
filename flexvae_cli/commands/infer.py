"""`flexvae infer`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flexvae_cli import ui
from flexvae_cli.commands._latent_choices import Arithmetic
from flexvae_cli.commands._limits import ExactOption, Limits, MemoryOption, TileOption
from flexvae_cli.commands._model_arguments import (
    MAX_BAD,
    Faults,
    MaxBadOption,
    OptionalDevice,
    OptionalModel,
    OptionalOutput,
    OptionalSource,
    OverwriteOption,
    Places,
    ResizeOption,
    WorkersOption,
    check_inputs,
    find_places,
    load_on,
    parse_size,
    source_path,
)
from flexvae_cli.commands._rereading import model_of, names_reader
from flexvae_cli.commands.options import ConfigOption, JsonOption, SetOption

if TYPE_CHECKING:
    from flexvae_cli.api import Shape
    from flexvae_cli.engine.inference import Reconstruction
    from flexvae_cli.engine.metrics import Scores
    from flexvae_cli.engine.naming import OutputFolder
    from flexvae_cli.engine.sheet import Tile

SHEET, METRICS = "sheet.png", "metrics.json"
SHOWN = 8  # images on the sheet


def infer(
    model: OptionalModel = None,
    source: OptionalSource = None,
    output: OptionalOutput = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Take only the first images.")] = None,
    resize: ResizeOption = None,
    exact: ExactOption = False,
    memory: MemoryOption = None,
    tile: TileOption = None,
    precision: Annotated[Arithmetic, typer.Option("--precision", help="How the net computes.")] = Arithmetic.FP32,
    device: OptionalDevice = None,
    workers: WorkersOption = 2,
    max_bad: MaxBadOption = MAX_BAD,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Reconstruct images, sounds, volumes or arrays and measure how well.

    Writes a file of the same kind for each, as large as it went in (images as PNG), a sheet of originals beside
    reconstructions (sheet.png) and PSNR and SSIM of each (metrics.json). With --config, MODEL is the config's run
    directory, INPUT and OUTPUT stand in its table infer, and files are read as its table data says.
    """
    places = find_places("infer", model, source, output, config=config, overrides=overrides, device=device)
    check_inputs(places.model, places.source, device=places.device)
    limits = Limits.of(exact, memory, tile, precision.value)
    from flexvae_cli.engine.naming import open_output

    folder = open_output(places.output, source_path(places.source), overwrite=overwrite)
    size = None if resize is None else parse_size(resize, "--resize")
    metrics = _reconstruct_all(places, folder, limits, limit, size, workers, max_bad, precision)
    if as_json:
        ui.json(metrics)
    else:
        _print(metrics)
    ui.say(f"wrote {metrics['count']} reconstructions, {SHEET} and {METRICS} to {places.output}")


def _reconstruct_all(
    places: Places,
    folder: OutputFolder,
    limits: Limits,
    limit: int | None,
    size: tuple[int, int] | None,
    workers: int,
    max_bad: float,
    precision: Arithmetic,
) -> dict[str, Any]:
    """Write everything; returns what is in metrics.json."""
    found = model_of(places.model, places.settings)
    from flexvae_cli.engine.inference import BATCH_SIZE, read_samples, reconstruct
    from flexvae_cli.engine.kind import require_pictures, samples_in
    from flexvae_cli.engine.metrics import metrics_of
    from flexvae_cli.engine.precision import Precision
    from flexvae_cli.engine.reading import json_bytes
    from flexvae_cli.engine.sheet import pairs

    kind, items = samples_in(found.model, places.source, where="INPUT", named=names_reader(places.settings))
    require_pictures(kind, {"--resize": size})
    names = kind.names([item.name for item in items], reserved=[SHEET])
    items = items[:limit]  # after the names, which do not depend on it
    loaded = load_on(found, places.device, exact=limits.exact, fuse=limits.fuse, precision=precision.value)
    arithmetic = Precision(precision.value, loaded.device, "--precision")
    loaded, faults = limits.applied(loaded, folder.root, "encoder", "decoder"), Faults(max_bad, len(items))
    each: list[tuple[str, str, Shape, Scores]] = []
    tiles: list[tuple[Tile, Tile]] = []
    try:
        with ui.progress(len(items), "images") as advance:
            samples = read_samples(loaded, items, workers=workers, report=faults, size=size, kind=kind)
            for result in reconstruct(loaded, samples, limits.batch_size(BATCH_SIZE), arithmetic):
                name = result.sample.name
                kind.write(folder, names[name], result.x, result.sample.about)
                each.append((name, names[name], result.sample.size, result.scores))
                if len(tiles) < SHOWN:
                    tiles.append(_tiles(result))
                advance(len(each) + len(faults.all))
    finally:
        faults.write(folder)
    folder.write_image(SHEET, pairs(tiles))
    limits.tell(loaded)
    said = limits.said(loaded)
    metrics = metrics_of(each, weights_hash=found.weights_hash, bad_files=len(faults.all), **said)
    folder.write(METRICS, json_bytes(metrics))
    return metrics


def _tiles(result: Reconstruction) -> tuple[Tile, Tile]:
    from flexvae_cli.engine.picture import picture
    from flexvae_cli.engine.sheet import tile

    scores = result.scores
    caption = "identical" if scores.psnr == math.inf else f"{scores.psnr:.1f} dB"
    if scores.ssim is not None:
        caption += f", SSIM {scores.ssim:.3f}"
    return tile(picture(result.sample.x), result.sample.name), tile(picture(result.x), right=caption)


def _print(metrics: dict[str, Any]) -> None:
    columns = [ui.Column("image", shrink=True), *(ui.Column(t, number=True) for t in ("size", "PSNR (dB)", "SSIM"))]
    rows = [
        (row["name"], "x".join(map(str, row["size"])), _psnr(row["psnr"], row["identical"]), _ssim(row["ssim"]))
        for row in metrics["images"]
    ]
    mean = metrics["mean"]
    identical = metrics["identical"] == metrics["count"]
    count = f"mean of {metrics['count']}" if metrics["count"] > 1 else ""
    ui.table(columns, rows, total=(count, "", _psnr(mean["psnr"], identical), _ssim(mean["ssim"])) if count else ())
    if metrics["identical"]:
        ui.say("note: identical images have an infinite PSNR and are left out of its mean")


def _psnr(value: float | None, identical: bool) -> str:
    return "inf" if identical else "-" if value is None else f"{value:.2f}"


def _ssim(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
