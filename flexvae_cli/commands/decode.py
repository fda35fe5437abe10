"""`flexvae decode`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flexvae_cli import ui
from flexvae_cli.commands._limits import ExactOption, Limits, MemoryOption, TileOption
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
    exact: ExactOption = False,
    memory: MemoryOption = None,
    tile: TileOption = None,
    device: DeviceOption = "auto",
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Decode latents into images, sounds, volumes or arrays.

    Each is as large as the one that was encoded, and of its kind: with its rate, its affine, its type.

    All latents are verified before the first image is written; those of another model are refused.
    """
    check_inputs(model, latents, device=device)
    limits = Limits.of(exact, memory, tile)
    from flexvae_cli.engine.naming import open_output, output_names

    folder = open_output(output, [latents], overwrite=overwrite)
    found = model_files(model)
    from flexvae_cli.engine.decoding import decode_latents, verified_latents
    from flexvae_cli.engine.kind import kind_for, kind_of

    loaded = limits.applied(load_on(found, device, exact=exact, fuse=limits.fuse), folder.root, "decoder")
    manifest = verified_latents(loaded, latents)
    kind = kind_of({**found.model, "preprocessing": manifest.preprocessing})  # as encode read them
    kinds = {image.name: kind_for(kind, image.name) for image in manifest.images}
    names = output_names(list(kinds), lambda name: kinds[name].chosen.reader.suffix(name))
    abouts = {image.name: image.source.about if image.source else {} for image in manifest.images}
    for image in manifest.images:
        if abouts[image.name]:
            kinds[image.name].check(names[image.name], abouts[image.name], image.size)
    most = limits.batch_size(batch_size)
    with ui.progress(len(names), "images") as advance:
        for done, (image, x) in enumerate(decode_latents(loaded, latents, manifest, most), start=1):
            kinds[image.name].write(folder, names[image.name], x, abouts[image.name])
            advance(done)
    if as_json:
        ui.json({"output": str(output), "images": names, **limits.said(loaded)})
    limits.tell(loaded)
    ui.say(f"wrote {len(names)} images to {output}")
