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
    first: Annotated[Path, typer.Argument(metavar="A", help="The image, or other file, to start from.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="The one to arrive at.")],
    output: OutputArgument,
    steps: Annotated[int, typer.Option("--steps", min=2, help="How many frames, both ends included.")] = 8,
    spherical: Annotated[
        bool, typer.Option("--spherical", help="Go along a great circle of the latent space, not straight.")
    ] = False,
    device: DeviceOption = "auto",
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Decode the way between two images, sounds, volumes or arrays.

    Writes frame-000.png and so on, or files of the same kind, and the first 64 on one sheet.png. Where the two differ
    in size, their centres are taken.
    """
    check_inputs(model, first, second, device=device)
    from flexvae_cli.engine.naming import open_output

    folder = open_output(output, [first, second], overwrite=overwrite)
    found = model_files(model)
    from flexvae_cli.engine.inference import interpolation, read_pair
    from flexvae_cli.engine.kind import samples_in
    from flexvae_cli.engine.picture import picture
    from flexvae_cli.engine.sheet import Tile, strip, tile

    kind, _ = samples_in(found.model, str(first), "A")
    loaded = load_on(found, device)
    a, b = read_pair(loaded, first, second, kind)
    suffix = kind.chosen.reader.suffix(first.name)
    names: list[str] = []
    tiles: list[Tile] = []
    with ui.progress(steps, "images") as advance:
        for index, x in enumerate(interpolation(loaded, a, b, steps=steps, spherical=spherical)):
            names.append(f"frame-{index:03d}{suffix}")
            kind.write(folder, names[-1], x, {**a.about, "frames": x.shape[-1]} if "frames" in a.about else a.about)
            if len(tiles) < SHOWN:
                tiles.append(tile(picture(x), f"{index / (steps - 1):.2f}"))
            advance(index + 1)
    folder.write_image(SHEET, strip(tiles))
    if as_json:
        ui.json({"output": str(output), "images": names, "sheet": SHEET})
    ui.say(f"wrote {steps} frames and {SHEET} to {output}")
