"""`flexvae infer`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flexvae_cli import ui
from flexvae_cli.commands._model_arguments import (
    Faults,
    OptionalDevice,
    OptionalModel,
    OptionalOutput,
    OptionalSource,
    OverwriteOption,
    Places,
    WorkersOption,
    check_inputs,
    find_places,
    load_on,
    model_files,
    source_path,
)
from flexvae_cli.commands.options import ConfigOption, JsonOption, SetOption

if TYPE_CHECKING:
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
    device: OptionalDevice = None,
    workers: WorkersOption = 2,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Reconstruct images and measure how well.

    Writes one PNG per image, as large as it went in, a sheet of originals beside reconstructions (sheet.png) and PSNR
    and SSIM of every image (metrics.json). With --config, MODEL is the config's run
    directory, and INPUT and OUTPUT stand in its table infer.
    """
    places = find_places("infer", model, source, output, config=config, overrides=overrides, device=device)
    check_inputs(places.model, places.source, device=places.device)
    from flexvae_cli.engine.naming import open_output

    folder = open_output(places.output, source_path(places.source), overwrite=overwrite)
    metrics = _reconstruct_all(places, folder, limit, workers)
    if as_json:
        ui.json(metrics)
    else:
        _print(metrics)
    ui.say(f"wrote {metrics['count']} reconstructions, {SHEET} and {METRICS} to {places.output}")


def _reconstruct_all(places: Places, folder: OutputFolder, limit: int | None, workers: int) -> dict[str, Any]:
    """Write everything; returns what is in metrics.json."""
    found = model_files(places.model)
    from flexvae_cli.engine.data.images import to_image
    from flexvae_cli.engine.data.sources import list_images
    from flexvae_cli.engine.inference import read_samples, reconstruct
    from flexvae_cli.engine.metrics import metrics_of
    from flexvae_cli.engine.naming import output_names
    from flexvae_cli.engine.reading import json_bytes
    from flexvae_cli.engine.sheet import pairs

    items = list_images(places.source, where="INPUT")
    names = output_names([item.name for item in items], ".png", reserved=[SHEET])
    items = items[:limit]  # after the names, which do not depend on it
    loaded, faults = load_on(found, places.device), Faults()
    each: list[tuple[str, str, tuple[int, int], Scores]] = []
    tiles: list[tuple[Tile, Tile]] = []
    try:
        with ui.progress(len(items), "images") as advance:
            for result in reconstruct(loaded, read_samples(loaded, items, workers=workers, report=faults)):
                name = result.sample.name
                folder.write_image(names[name], to_image(result.x))
                each.append((name, names[name], result.sample.size, result.scores))
                if len(tiles) < SHOWN:
                    tiles.append(_tiles(result))
                advance(len(each) + len(faults.all))
    finally:
        faults.write(folder)
    folder.write_image(SHEET, pairs(tiles))
    metrics = metrics_of(each, weights_hash=found.weights_hash, bad_files=len(faults.all))
    folder.write(METRICS, json_bytes(metrics))
    return metrics


def _tiles(result: Reconstruction) -> tuple[Tile, Tile]:
    from flexvae_cli.engine.data.images import to_image
    from flexvae_cli.engine.sheet import tile

    scores = result.scores
    caption = "identical" if scores.psnr == math.inf else f"{scores.psnr:.1f} dB"
    if scores.ssim is not None:
        caption += f", SSIM {scores.ssim:.3f}"
    return tile(to_image(result.sample.x), result.sample.name), tile(to_image(result.x), right=caption)


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
