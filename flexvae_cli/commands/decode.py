"""`flexvae decode`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flexvae_cli import ui
from flexvae_cli.commands._model_arguments import (
    BatchOption,
    DeviceOption,
    ModelArgument,
    OutputArgument,
    OverwriteOption,
    check_inputs,
    load_on,
    model_files,
)
from flexvae_cli.commands.options import JsonOption


def decode(
    model: ModelArgument,
    latents: Annotated[Path, typer.Argument(metavar="LATENTS", help="A folder that `flexvae encode` wrote.")],
    output: OutputArgument,
    batch_size: BatchOption = 8,
    device: DeviceOption = "auto",
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Decode latents into images.

    Each is as large as the one that was encoded.

    All latents are verified before the first image is written; those of another model are refused.
    """
    check_inputs(model, latents, device=device)
    from flexvae_cli.engine.naming import open_output, output_names

    folder = open_output(output, [latents], overwrite=overwrite)
    found = model_files(model)
    from flexvae_cli.engine.data.images import to_image
    from flexvae_cli.engine.decoding import decode_latents, verified_latents

    loaded = load_on(found, device)
    manifest = verified_latents(loaded, latents)
    names = output_names([image.name for image in manifest.images], ".png")
    with ui.progress(len(names), "images") as advance:
        for done, (image, x) in enumerate(decode_latents(loaded, latents, manifest, batch_size), start=1):
            folder.write_image(names[image.name], to_image(x))
            advance(done)
    if as_json:
        ui.json({"output": str(output), "images": names})
    ui.say(f"wrote {len(names)} images to {output}")
