"""`flexvae latents`: verify, info."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from flexvae_cli import ui
from flexvae_cli.commands._model_arguments import MODEL_HELP, model_files
from flexvae_cli.commands.options import JsonOption
from flexvae_cli.errors import DataError, Exit

app = typer.Typer(no_args_is_help=True, help="Verify and describe folders of latents.")
LatentsArgument = Annotated[Path, typer.Argument(metavar="PATH", help="A folder that `flexvae encode` wrote.")]


@app.command()
def verify(
    path: LatentsArgument,
    model: Annotated[
        Path | None, typer.Option("--model", metavar="MODEL", help=f"They must be this model's: {MODEL_HELP}")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Read all latents and compare them with the manifest.

    Hashes, types and shapes must be those of the manifest, numbers finite, no file missing, and none there that the
    manifest does not name. With --model the latents must be that model's. Exit code 4 where anything is wrong; all of
    it is told.
    """
    _require(path)
    weights_hash = None if model is None else model_files(model).weights_hash
    from flexvae_cli.engine.latents.checking import Latents

    latents, problems = Latents(path), []
    with ui.progress(len(latents.manifest.files), "files") as advance:
        for done, problem in enumerate(latents.verify(weights_hash), start=1):
            if problem is not None:
                problems.append(problem)
            advance(min(done, len(latents.manifest.files)))
    if as_json:
        ui.json(
            {
                "path": str(path),
                "images": len(latents.manifest.images),
                "files": len(latents.manifest.files),
                "weights_hash": latents.manifest.model.weights_hash,
                "problems": [{"where": problem.where, "what": problem.what} for problem in problems],
            }
        )
    else:
        for problem in problems:
            ui.data(str(problem))
        wrong = f"{len(problems):,} problem{'s' * (len(problems) > 1)}" if problems else "all as the manifest says"
        ui.data(f"{len(latents.manifest.images):,} latents in {len(latents.manifest.files):,} files: {wrong}")
    if problems:
        raise typer.Exit(Exit.MODEL)


@app.command()
def info(path: LatentsArgument, as_json: JsonOption = False) -> None:
    """Say what a folder of latents holds: how many, their shapes, statistics per channel, and the rate."""
    _require(path)
    from flexvae_cli.engine.latents.checking import Latents

    latents = Latents(path)
    found: dict[str, Any] = {}
    with ui.progress(len(latents.manifest.files), "files") as advance:
        for told in latents.describe():
            if isinstance(told, int):
                advance(told)
            else:
                found = told
    if as_json:
        ui.json(found)
    else:
        _print(found)


def _require(path: Path) -> None:
    if not path.is_dir():
        raise DataError("no such folder", where=str(path))


def _print(found: dict[str, Any]) -> None:
    latents, model = found["latents"], found["model"]
    ui.data(f"latents: {latents['value']}, {latents['scaling']}, {latents['dtype']}" + ", flips" * latents["flip"])
    ui.data(f"model: {model['weights_hash'][:12]}, bottleneck {model['bottleneck']}")
    ui.data(f"images: {found['images']:,}, {found['failures']:,} could not be read")
    ui.data(f"shapes: {', '.join(f'{count:,} of {shape}' for shape, count in found['shapes'].items())}")
    ui.data(f"labels: {len(found['labels']):,}")
    rate = f", {found['bits_per_pixel']:.3g} bits per pixel" if found["bits_per_pixel"] is not None else ""
    ui.data(f"files: {found['files']:,} ({found['layout']}), {found['bytes'] / 1e6:,.1f} MB{rate}")
    if found["kl_per_image"] is not None:
        ui.data(f"KL per image: {found['kl_per_image']:,.1f} nats")
    if latents["error"] is not None:
        ui.data(f"rounding: {latents['error']['rms']:.2e} rms, {latents['error']['max']:.2e} at most")
    if found["channels"]:
        keys = ("channel", "mean", "std", "min", "max")
        rows = [
            [f"{each[key]:.4g}" if key != "channel" else str(each[key]) for key in keys] for each in found["channels"]
        ]
        ui.table([ui.Column(key, number=True) for key in keys], rows)
