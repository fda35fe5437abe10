"""`flexvae interpolate`."""

from __future__ import annotations

from pathlib import Path
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
)
from flexvae_cli.commands.options import JsonOption

SHEET = "sheet.png"
SHOWN = 64  # images on the sheet


def interpolate(
    model: ModelArgument,
    first: Annotated[Path, typer.Argument(metavar="A", help="The image to start from.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="The image to arrive at.")],
    output: OutputArgument,
    steps: Annotated[int, typer.Option("--steps", min=2, help="How many frames, both ends included.")] = 8,
    spherical: Annotated[
        bool, typer.Option("--spherical", help="Go along a great circle of the latent space, not straight.")
    ] = False,
    device: DeviceOption = "auto",
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Decode the way between two images.

    Writes frame-000.png and so on, and the first 64 on one sheet.png. Where the images differ in size, their
    centres are taken.
    """
    check_inputs(model, first, second, device=device)
    from flexvae_cli.engine.naming import open_output

    folder = open_output(output, [first, second], overwrite=overwrite)
    found = model_files(model)
    from flexvae_cli.engine.data.images import to_image
    from flexvae_cli.engine.inference import interpolation, read_pair
    from flexvae_cli.engine.sheet import Tile, strip, tile

    loaded = load_on(found, device)
    a, b = read_pair(loaded, first, second)
    names: list[str] = []
    tiles: list[Tile] = []
    with ui.progress(steps, "images") as advance:
        for index, x in enumerate(interpolation(loaded, a, b, steps=steps, spherical=spherical)):
            image = to_image(x)
            names.append(f"frame-{index:03d}.png")
            folder.write_image(names[-1], image)
            if len(tiles) < SHOWN:
                tiles.append(tile(image, f"{index / (steps - 1):.2f}"))
            advance(index + 1)
    folder.write_image(SHEET, strip(tiles))
    if as_json:
        ui.json({"output": str(output), "images": names, "sheet": SHEET})
    ui.say(f"wrote {steps} frames and {SHEET} to {output}")
