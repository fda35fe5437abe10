"""`flexvae mirror`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flexvae_cli import ui
from flexvae_cli.commands.options import JsonOption

if TYPE_CHECKING:
    from flexvae_cli.net import Net


class Upsample(StrEnum):
    NEAREST = "nearest"
    PIXEL_SHUFFLE = "pixel-shuffle"
    TRANSPOSED = "transposed"


UPSAMPLE_HELP = (
    "What stands for the stride of a convolution: nearest upsampling and a convolution, a convolution and a pixel "
    "shuffle, or a transposed convolution; the last two come with flexvae-layers-extra."
)


def mirror(
    encoder: Annotated[Path, typer.Argument(metavar="ENCODER", help="The structure file of an encoder.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Where to write the decoder; by default to stdout."),
    ] = None,
    upsample: Annotated[Upsample, typer.Option("--upsample", help=UPSAMPLE_HELP)] = Upsample.NEAREST,
    bottleneck: Annotated[
        str, typer.Option("--bottleneck", metavar="CODE", help="What stands between; KL halves the channels.")
    ] = "KL",
    channels: Annotated[
        int | None,
        typer.Option(
            "--channels", min=1, help="Channels of a sample; by default what the encoder's first layers take."
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write a decoder that fits an encoder.

    Layers in reversed order, with their channels swapped: strides and pooling become upsampling, repeats stay repeats.

    Before it is written, encoder, bottleneck and decoder are traced as one: samples come back as large as they went in.
    """
    from flexvae_cli.errors import UsageError
    from flexvae_cli.fallback import meta_fallback
    from flexvae_cli.inspection.assumed_input import assumed_input
    from flexvae_cli.mirroring import mirror_of
    from flexvae_cli.plugins import installed
    from flexvae_cli.structure import read_structure
    from flexvae_cli.structure_text import structure_text

    if output is not None and output.exists() and not overwrite:
        raise UsageError("is there already", where=str(output), hint="choose another file, or add --overwrite")
    registry, fallback = installed().registry, meta_fallback()
    structure = read_structure(encoder, registry)
    shape = assumed_input(structure, fallback)
    shape = shape if channels is None else (channels, *shape[1:])
    net = mirror_of(structure, bottleneck, shape, registry, fallback, upsample.value)
    content = structure_text(net.decoder.document)
    if output is not None:
        from flexvae_cli.engine.files import replace_file, writing  # imports no torch

        with writing(output, len(content)):
            replace_file(output, content.encode())
    if as_json:
        ui.json(_report(net, output))
    elif output is None:
        ui.data(content)
    _say(net, output)


def _report(net: Net, output: Path | None) -> dict[str, Any]:
    encoder, _, decoder = net.checked()
    return {
        "encoder": net.encoder.name,
        "bottleneck": net.bottleneck.code,
        "decoder": net.decoder.document,
        "file": str(output) if output else None,
        "input": list(net.shape),
        "latent": list(net.latent_shape),
        "parameters": {"encoder": encoder.parameters, "decoder": decoder.parameters},
        "plugins": net.distributions,
    }


def _say(net: Net, output: Path | None) -> None:
    from flexvae_cli.api.trace import text

    encoder, _, decoder = net.checked()
    there = f"{text(net.shape)} -> latent {text(net.latent_shape)} -> {text(decoder.gives)}"
    if output is not None:
        ui.say(f"wrote {output}")
    ui.say(f"{there}; encoder {encoder.parameters:,} parameters, decoder {decoder.parameters:,}")
