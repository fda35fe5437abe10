"""`flexvae encode`."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from flexvae_cli import ui
from flexvae_cli.commands._model_arguments import (
    BatchOption,
    Faults,
    OptionalDevice,
    OptionalModel,
    OptionalOutput,
    OptionalSource,
    OverwriteOption,
    WorkersOption,
    check_inputs,
    find_places,
    load_on,
    model_files,
    source_path,
)
from flexvae_cli.commands.options import ConfigOption, JsonOption, SetOption

if TYPE_CHECKING:
    from flexvae_cli.engine.data.sources import Item
    from flexvae_cli.engine.manifest import Manifest
    from flexvae_cli.engine.model import Model
    from flexvae_cli.engine.naming import OutputFolder
    from flexvae_cli.engine.normalization import Normalization


class Format(StrEnum):
    SHARDS = "shards"
    FILES = "files"


class Scaling(StrEnum):
    RAW = "raw"
    NORMALIZED = "normalized"
    INDICES = "indices"


def encode(
    model: OptionalModel = None,
    source: OptionalSource = None,
    output: OptionalOutput = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    layout: Annotated[
        Format | None,
        typer.Option("--format", help="Many latents per file, or one file per image.", show_default="shards"),
    ] = None,
    scaling: Annotated[
        Scaling | None,
        typer.Option(
            "--latents",
            help="As the decoder takes them, with mean 0 and deviation 1 in every channel, or a quantizer's indices.",
            show_default="indices where the bottleneck quantizes, else raw",
        ),
    ] = None,
    flip: Annotated[bool, typer.Option("--flip", help="Encode every image mirrored as well.")] = False,
    shard_size: Annotated[int, typer.Option("--shard-size", min=1, help="Latents per shard.")] = 1024,
    batch_size: BatchOption = 8,
    device: OptionalDevice = None,
    workers: WorkersOption = 2,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Encode images into latents.

    Writes safetensors in the layout that LightningDiT trains from, or one file per image that mirrors the folders, and
    manifest.json, which says which model made them and where the latent of each image is. Equal input gives equal
    bytes. Normalized latents carry the numbers that undo it, and `flexvae decode` does. Indices of a quantizing
    bottleneck take as many bits as they need. With --config, MODEL is the config's run directory, and INPUT and OUTPUT
    stand in its table encode.
    """
    places = find_places("encode", model, source, output, config=config, overrides=overrides, device=device)
    check_inputs(places.model, places.source, device=places.device)
    layout = layout or Format(places.settings.encode.format if places.settings else "shards")
    found = model_files(places.model)
    from flexvae_cli.engine.manifest import refuse_latents
    from flexvae_cli.engine.naming import open_output

    if not overwrite:
        refuse_latents(places.output, found.weights_hash)
    folder = open_output(places.output, source_path(places.source), overwrite=overwrite)
    from flexvae_cli.engine.data.sources import list_images
    from flexvae_cli.engine.latents import discard_latents

    items = list_images(places.source, where="INPUT")
    loaded = load_on(found, places.device)
    width = _width(loaded, scaling)
    scaling = scaling or (Scaling.INDICES if width else Scaling.RAW)
    normalization = _normalization(loaded) if scaling is Scaling.NORMALIZED else None
    discard_latents(folder)
    manifest = _encode_all(
        loaded,
        items,
        folder,
        layout,
        normalization,
        width,
        flip=flip,
        shard_size=shard_size,
        batch_size=batch_size,
        workers=workers,
    )
    shapes = sorted({"x".join(map(str, file.shape)) for file in manifest.files})
    size = sum(file.bytes for file in manifest.files)
    if as_json:
        ui.json(
            {
                "output": str(places.output),
                "images": len(manifest.images),
                "bad_files": len(manifest.failures),
                "files": len(manifest.files),
                "latents": scaling.value,
                "shapes": shapes,
                "bytes": size,
                "weights_hash": found.weights_hash,
            }
        )
    else:
        ui.data(f"images: {len(manifest.images):,}")
        ui.data(f"latents: {', '.join(shapes)}, {scaling.value}")
        ui.data(f"files: {len(manifest.files):,}, {size / 1e6:,.1f} MB")
    ui.say(f"wrote them to {places.output}")


def _normalization(model: Model) -> Normalization:
    from flexvae_cli.engine.normalization import Normalization

    hint = f"flexvae stats {model.path} DATA --write BUNDLE measures them anew"
    return Normalization.of(model.description.get("latents"), model.net.latent_shape[0], str(model.path), hint)


def _width(model: Model, scaling: Scaling | None) -> int | None:
    """The bits of an index, where indices are to be written."""
    from flexvae_cli.engine.packing import codes_of, width_of
    from flexvae_cli.errors import UsageError

    codes = codes_of(model) if scaling in (None, Scaling.INDICES) else None
    if scaling is Scaling.INDICES and codes is None:
        raise UsageError(
            f"the bottleneck {model.net.bottleneck.code} gives no indices",
            where="--latents",
            hint="leave --latents out, or write --latents raw",
        )
    return None if codes is None else width_of(codes)


def _encode_all(
    model: Model,
    items: list[Item],
    folder: OutputFolder,
    layout: Format,
    normalization: Normalization | None,
    width: int | None,
    *,
    flip: bool,
    shard_size: int,
    batch_size: int,
    workers: int,
) -> Manifest:
    from flexvae_cli.engine.inference import read_samples
    from flexvae_cli.engine.latent_files import FileWriter, ShardWriter
    from flexvae_cli.engine.latents import (
        about_latents,
        encode_images,
        labels_of,
        make_manifest,
        publish_manifest,
    )
    from flexvae_cli.engine.naming import output_names

    names, faults = [item.name for item in items], Faults()
    about = about_latents(model, normalization, width)
    writer = (
        ShardWriter(folder, shard_size, about=about)
        if layout is Format.SHARDS
        else FileWriter(folder, output_names(names, ".safetensors"), about=about)
    )
    labels, images = labels_of(names), []
    try:
        with ui.progress(len(items), "images") as advance:
            samples = read_samples(model, items, workers=workers, report=faults)
            for image in encode_images(
                model,
                samples,
                writer,
                labels=labels,
                flip=flip,
                normalization=normalization,
                width=width,
                batch_size=batch_size,
            ):
                images.append(image)
                advance(len(images) + len(faults.all))
    finally:
        faults.write(folder)
    manifest = make_manifest(
        model,
        layout.value,
        writer,
        images,
        faults.all,
        labels=labels,
        flip=flip,
        normalization=normalization,
        width=width,
    )
    publish_manifest(folder, manifest)
    return manifest
