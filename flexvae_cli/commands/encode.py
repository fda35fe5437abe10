"""`flexvae encode`."""

from __future__ import annotations

import os
from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flexvae_cli import ui
from flexvae_cli.commands._before_torch import before_torch
from flexvae_cli.commands._latent_choices import Arithmetic, Dtype, Format, Posterior, Scaling
from flexvae_cli.commands._limits import ExactOption, Limits, MemoryOption, TileOption
from flexvae_cli.commands._model_arguments import (
    MAX_BAD,
    BatchOption,
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
    parse_size,
    source_path,
)
from flexvae_cli.commands._rereading import model_of, names_reader
from flexvae_cli.commands._voice import Voice, one_voice
from flexvae_cli.commands.options import ConfigOption, JsonOption, SetOption

if TYPE_CHECKING:
    from pathlib import Path

    from flexvae_cli.engine.latents.writing import Encode
    from flexvae_cli.engine.manifest import Manifest
    from flexvae_cli.engine.modelfiles import ModelFiles

PATIENCE = 86_400.0  # seconds that processes wait for the slowest one; one that died is noticed at once


def encode(
    model: OptionalModel = None,
    source: OptionalSource = None,
    output: OptionalOutput = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    layout: Annotated[
        Format | None,
        typer.Option(
            "--format",
            help="Shards of safetensors, one safetensors or .npy file per image, or WebDataset tars.",
            show_default="shards",
        ),
    ] = None,
    scaling: Annotated[
        Scaling | None,
        typer.Option(
            "--latents",
            help="As the decoder takes them, with mean 0 and deviation 1 in every channel, or a quantizer's indices.",
            show_default="indices where the bottleneck quantizes, else raw",
        ),
    ] = None,
    posterior: Annotated[
        Posterior | None,
        typer.Option(
            "--posterior",
            help="Its mean and deviation, its mean, or a draw from it.",
            show_default="moments where the bottleneck has one",
        ),
    ] = None,
    dtype: Annotated[Dtype, typer.Option("--dtype", help="The type that latents are stored in.")] = Dtype.FP32,
    flips: Annotated[bool, typer.Option("--flips", "--flip", help="Encode every image mirrored as well.")] = False,
    resize: ResizeOption = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="What --posterior sample draws from.")] = 0,
    shard_size: Annotated[int, typer.Option("--shard-size", min=1, help="Latents per shard.")] = 1024,
    batch_size: BatchOption = 8,
    precision: Annotated[Arithmetic, typer.Option("--precision", help="How the net computes.")] = Arithmetic.FP32,
    exact: ExactOption = False,
    memory: MemoryOption = None,
    tile: TileOption = None,
    device: OptionalDevice = None,
    workers: WorkersOption = 2,
    max_bad: MaxBadOption = MAX_BAD,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Encode images into latents.

    Writes safetensors in the layout that LightningDiT trains from (or one of three others) and manifest.json, which
    says which model made them, where the latent of each image is, and what could not be read. Equal input gives equal
    bytes. An encode that was killed goes on when it is started again; one that is complete encodes only what has
    changed since. Several processes under torchrun share the work. With --config, MODEL is the config's run directory,
    INPUT and OUTPUT stand in its table encode, and files are read as its table data says.
    """
    before_torch("OMP_WAIT_POLICY", "PASSIVE")  # a thread that waits for another leaves its core to those who read
    places = find_places("encode", model, source, output, config=config, overrides=overrides, device=device)
    check_inputs(places.model, places.source, device=places.device)
    limits = Limits.of(exact, memory, tile, precision.value)
    size = None if resize is None else parse_size(resize, "--resize")
    layout = layout or Format(places.settings.encode.format if places.settings else "shards")
    choices = {
        "layout": layout.value,
        "scaling": scaling and scaling.value,
        "posterior": posterior and posterior.value,
        "dtype": dtype.value,
        "flips": flips,
        "seed": seed,
        "size": size,
        "shard_size": shard_size,
        "batch_size": limits.batch_size(batch_size),
        "precision": precision.value,
    }
    from flexvae_cli.engine.place import find_place

    with one_voice(find_place(os.environ)) as voice:
        found = model_of(places.model, places.settings)
        root = _output(places, overwrite)
        from flexvae_cli.engine.latents.journal import held

        with held(root) if voice.place.rank == 0 else nullcontext():
            encoding = _prepared(voice, found, places, root, choices, overwrite, limits)
            manifest = _encode_all(encoding, workers, max_bad)
        if manifest is not None:
            said = limits.said(encoding.encoder.model)
            _tell(manifest, encoding.reused, places.output, said, as_json)
            limits.tell(encoding.encoder.model)
        if voice.world is not None:
            voice.world.leave()


def _output(places: Places, overwrite: bool) -> Path:
    """The folder to write to: it is new, empty, holds an encode, or may be overwritten."""
    from flexvae_cli.engine.latents.journal import is_ours
    from flexvae_cli.engine.naming import allowed_output

    may = overwrite or is_ours(places.output)
    return allowed_output(places.output, source_path(places.source), overwrite=may)


def _prepared(
    voice: Voice,
    found: ModelFiles,
    places: Places,
    root: Path,
    choices: dict[str, Any],
    overwrite: bool,
    limits: Limits,
) -> Encode:
    """All that can be known before the first image is encoded."""
    from flexvae_cli.engine.device import device_at, settle
    from flexvae_cli.engine.distributed import World, join
    from flexvae_cli.engine.kind import require_pictures, samples_in
    from flexvae_cli.engine.latents.choosing import Choices, make_encoder
    from flexvae_cli.engine.latents.writing import Encode
    from flexvae_cli.engine.model import load_files
    from flexvae_cli.engine.naming import OutputFolder
    from flexvae_cli.engine.precision import Precision

    kind, items = samples_in(found.model, places.source, where="INPUT", named=names_reader(places.settings))
    require_pictures(kind, {"--flips": choices["flips"], "--resize": choices["size"]})
    settle()
    device = device_at(places.device, voice.place, "--device")
    dtype = Precision(choices["precision"], device, "--precision").dtype
    model = limits.applied(load_files(found, device=device, fuse=limits.fuse, dtype=dtype), root, "encoder")
    wanted = Choices(**choices)
    encoder = make_encoder(model, wanted, [item.name for item in items])
    voice.world = None if voice.place.alone else join(voice.place, device, PATIENCE)
    world = voice.world or World(voice.place)
    folder = OutputFolder(root, shared=not voice.place.alone)
    encoding = Encode(encoder, wanted, items, folder, world, kind, overwrite)
    encoding.plan()
    return encoding


def _encode_all(encoding: Encode, workers: int, max_bad: float) -> Manifest | None:
    """Encode and write; the first process returns the manifest."""
    faults, manifest = Faults(max_bad, len(encoding.items)), None
    try:
        with ui.progress(len(encoding.items), "images") as advance:
            for done in encoding.run(workers=workers, report=faults):
                advance(done)
        if encoding.world.first:
            manifest = encoding.collected()
            faults.all = encoding.failed
            faults.check()
    finally:
        if encoding.world.first:
            faults.write(encoding.folder)
    if manifest is not None:
        encoding.publish(manifest)
    return manifest


def _tell(manifest: Manifest, reused: int, output: Path, said: dict[str, Any], as_json: bool) -> None:
    shapes = sorted({"x".join(map(str, file.shape)) for file in manifest.files})
    size = sum(file.bytes for file in manifest.files)
    latents, error = manifest.latents, manifest.latents.error
    scaling = "indices" if latents.value == "indices" else latents.scaling
    if as_json:
        ui.json(
            {
                "output": str(output),
                "images": len(manifest.images),
                "reused": reused,
                "bad_files": len(manifest.failures),
                "files": len(manifest.files),
                "value": latents.value,
                "latents": scaling,
                "dtype": latents.dtype,
                "error": error and error.model_dump(),
                "shapes": shapes,
                "bytes": size,
                "weights_hash": manifest.model.weights_hash,
                **said,
            }
        )
    else:
        ui.data(f"images: {len(manifest.images):,}" + (f", {reused:,} of them as before" if reused else ""))
        ui.data(f"latents: {', '.join(shapes)}, {latents.value}, {scaling}, {latents.dtype}")
        if error is not None:
            ui.data(f"rounding to {latents.dtype}: {error.rms:.2e} rms, {error.max:.2e} at most")
        ui.data(f"files: {len(manifest.files):,}, {size / 1e6:,.1f} MB")
    ui.say(f"wrote them to {output}")
