"""`flexvae export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from flexvae_cli import ui
from flexvae_cli.commands._model_arguments import ModelArgument, Weights, WeightsOption, check_inputs
from flexvae_cli.commands.options import JsonOption


def export(
    model: ModelArgument,
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="The new folder of the bundle.")],
    weights: WeightsOption = Weights.EMA,
    as_json: JsonOption = False,
) -> None:
    """Copy a model out of its run.

    The copy holds all that using it takes.

    Two files: model.safetensors (the weights) and model.json (structures, preprocessing, latent statistics, plugins).
    """
    check_inputs(model, device="cpu")
    from flexvae_cli.engine.modelfiles import export_bundle

    bundle = export_bundle(model, target, raw=weights is Weights.RAW)
    for problem in bundle.passed_over:
        ui.warn(f"passed over: {problem}")
    about: dict[str, Any] = bundle.model
    result = {
        "bundle": str(target),
        "input": "x".join(map(str, about["input"])),
        "bottleneck": about["bottleneck"],
        "plugins": about.get("plugins", {}),
        "weights_hash": bundle.weights_hash,
        "files": {path.name: path.stat().st_size for path in sorted(target.iterdir())},
    }
    if as_json:
        ui.json(result)
        return
    plugins = ", ".join(f"{name} {version}" for name, version in result["plugins"].items())
    ui.data(f"{target}: takes {result['input']}, bottleneck {result['bottleneck']}, made with {plugins}")
    for name, size in result["files"].items():
        ui.data(f"  {name}  {size:,} bytes")
    ui.say("next: flexvae infer MODEL INPUT OUTPUT, or load_model() from Python")
