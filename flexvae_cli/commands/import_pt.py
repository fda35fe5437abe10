"""`flexvae import-pt`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flexvae_cli import ui
from flexvae_cli.commands.options import JsonOption


def import_pt(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE.pth... OUT.safetensors", help="What to read, and last the new file to write."),
    ],
    drop: Annotated[
        list[str] | None,
        typer.Option("--drop", metavar="PATTERN", help="Leave out tensors, as in 'classifier.*'; repeatable."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Turn files of torch.save into one safetensors file.

    Only plain tensors are read; a pickle that holds anything else is refused. Tensors keep their names.

    The weights of LPIPS, from torchvision's file and the heads of LPIPS 0.1:
    flexvae import-pt vgg16-397923af.pth vgg.pth lpips-vgg.safetensors --drop 'classifier.*'
    """
    from flexvae_cli.errors import ModelError, Problem, UsageError

    *sources, target = files
    if not sources:
        raise UsageError("import-pt wants files to read and the file to write", hint="FILE.pth OUT.safetensors")
    missing = [Problem("no such file", str(source)) for source in sources if not source.exists()]
    if missing:
        raise ModelError(*missing)
    from flexvae_cli.engine.pickles import import_pickles

    made = import_pickles(sources, target, drop or ())
    if as_json:
        shapes = {name: list(shape) for name, shape in made.tensors.items()}
        ui.json({"file": str(target), "bytes": made.bytes, "tensors": shapes, "left_out": list(made.left_out)})
        return
    ui.data(f"{target}: {len(made.tensors):,} tensors, {made.bytes / 1e6:,.1f} MB")
    if made.left_out:
        names = ", ".join(made.left_out[:4]) + ", ..." * (len(made.left_out) > 4)
        ui.say(f"left out: {names}")
