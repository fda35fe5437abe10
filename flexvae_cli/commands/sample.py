"""`flexvae sample`."""

from __future__ import annotations

from typing import Annotated

import typer

from flexvae_cli import ui
from flexvae_cli.commands._model_arguments import (
    DeviceOption,
    ModelArgument,
    OutputArgument,
    OverwriteOption,
    check_inputs,
    load_on,
    model_files,
    parse_sides,
)
from flexvae_cli.commands.options import JsonOption

SHEET = "sheet.png"
SHOWN = 64  # images on the sheet


def sample(
    model: ModelArgument,
    output: OutputArgument,
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="How many images.")] = 8,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Image k follows from the seed and k alone.")] = 0,
    size: Annotated[
        str | None,
        typer.Option(
            "--size",
            metavar="SIZE",
            help="Height x width; the length of a signal, all sides of a volume.",
            show_default="the model's input",
        ),
    ] = None,
    fitted: Annotated[
        bool,
        typer.Option("--fitted", help="Draw latents from their mean and deviation in training, not from the prior."),
    ] = False,
    device: DeviceOption = "auto",
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Decode latents drawn at random.

    Writes sample-000.png and so on, or files of the kind that the model was trained on, and the first 64 on one
    sheet.png.
    """
    wanted = parse_sides(size) if size is not None else None
    check_inputs(model, device=device)
    from flexvae_cli.engine.naming import open_output

    folder = open_output(output, [], overwrite=overwrite)
    found = model_files(model)
    from flexvae_cli.engine.inference import prior_samples
    from flexvae_cli.engine.kind import kind_of, require_axes
    from flexvae_cli.engine.picture import picture
    from flexvae_cli.engine.sheet import Tile, grid, tile

    kind = kind_of(found.model)
    if wanted is not None:
        require_axes(kind, wanted, "--size")
    loaded = load_on(found, device)
    names: list[str] = []
    tiles: list[Tile] = []
    with ui.progress(count, "images") as advance:
        samples = prior_samples(loaded, count, wanted or loaded.net.shape[1:], seed=seed, fitted=fitted)
        for index, x in enumerate(samples):
            names.append(f"sample-{index:03d}{kind.chosen.reader.suffix('')}")
            kind.write(folder, names[-1], x, {})
            if len(tiles) < SHOWN:
                tiles.append(tile(picture(x)))
            advance(index + 1)
    folder.write_image(SHEET, grid(tiles))
    if as_json:
        ui.json({"output": str(output), "images": names, "sheet": SHEET})
    ui.say(f"wrote {count} samples and {SHEET} to {output}")
