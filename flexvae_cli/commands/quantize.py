"""`flexvae quantize`."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flexvae_cli import ui
from flexvae_cli.commands._model_arguments import (
    MAX_BAD,
    BatchOption,
    DataArgument,
    DeviceOption,
    Faults,
    MaxBadOption,
    ModelArgument,
    WorkersOption,
    check_inputs,
    load_on,
    model_files,
)
from flexvae_cli.commands.options import JsonOption
from flexvae_cli.errors import UsageError

if TYPE_CHECKING:
    from flexvae_cli.engine.modelfiles import ModelFiles


def quantize(
    model: ModelArgument,
    data: DataArgument,
    bits: Annotated[
        str, typer.Option("--bits", metavar="N|auto", help="Of every weight, 2 to 16; auto chooses for each layer.")
    ] = "auto",
    max_drop: Annotated[
        str, typer.Option("--max-drop", metavar="DB", help="Most of the mean PSNR that it may cost, as in 0.3dB.")
    ] = "0.3dB",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="BUNDLE", help="A new folder for the model.", show_default=False),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Measure on the first images alone.")] = 16,
    batch_size: BatchOption = 8,
    device: DeviceOption = "auto",
    workers: WorkersOption = 2,
    max_bad: MaxBadOption = MAX_BAD,
    as_json: JsonOption = False,
) -> None:
    """Store a trained model's weights in few bits.

    Measures on DATA what each layer costs in PSNR when its weights alone have 2, 3, ... bits, gives the fewest bits
    where they save most for what they cost, and measures the whole once more: a plan that costs more than --max-drop is
    not written. The new model is read by every command; it computes in float32, as before. Nothing is trained.
    """
    wanted, budget = _bits(bits), _decibels(max_drop)
    check_inputs(model, data, device=device)
    if output is not None:
        from flexvae_cli.engine.folders import require_new

        require_new(output)
    found = model_files(model)
    if found.quantized:
        raise UsageError("has weights of few bits already", where=str(model), hint="give the model it was made from")
    result, tensors, described = _quantized(found, data, wanted, budget, limit, batch_size, device, workers, max_bad)
    if output is not None:
        from flexvae_cli.engine.modelfiles import write_bundle

        kept = {key: value for key, value in found.model.items() if key != "latents"}  # true of the old weights alone
        bundle = write_bundle(replace(found, model=kept), output, tensors, quantized=described)
        result |= {"output": str(output), "weights_hash": bundle.weights_hash}
    if as_json:
        ui.json(result)
    else:
        _print(result)
    if output is not None:
        ui.say(f"wrote {output}; next: flexvae infer {output} INPUT OUTPUT")
        if "latents" in found.model:
            ui.say(f"its latents have no statistics yet: flexvae stats {output} DATA --write BUNDLE measures them")


def _bits(text: str) -> int | None:
    """A number from 2 to 16, or None for `auto`."""
    if text == "auto":
        return None
    if not re.fullmatch(r"[0-9]{1,2}", text, re.ASCII) or not 2 <= int(text) <= 16:
        raise UsageError(f"--bits wants a number from 2 to 16, or auto, not '{text}'")
    return int(text)


def _decibels(text: str) -> float:
    """`0.3`, `0.3dB` or `0.3 dB`."""
    match = re.fullmatch(r"([0-9]{1,3}(?:\.[0-9]{1,6})?) ?(?:dB)?", text, re.ASCII | re.IGNORECASE)
    if not match or float(match[1]) <= 0:
        raise UsageError(f"--max-drop wants decibels above 0, as in 0.3dB, not '{text}'")
    return float(match[1])


def _quantized(
    found: ModelFiles,
    data: str,
    bits: int | None,
    budget: float,
    limit: int,
    batch_size: int,
    device: str,
    workers: int,
    max_bad: float,
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Choose bits and measure: the result, the tensors of the new weights file, and what model.json says of them."""
    from flexvae_cli.engine.inference import read_samples
    from flexvae_cli.engine.kind import samples_in
    from flexvae_cli.engine.quantization.packed import packed_weights
    from flexvae_cli.engine.quantization.planning import choose
    from flexvae_cli.engine.quantization.sensitivity import Gauge, bits_of_tensors
    from flexvae_cli.engine.tensorfiles import tensor_bytes

    kind, items = samples_in(found.model, data, where="DATA")
    items = items[:limit]
    model, faults = load_on(found, device, exact=True), Faults(max_bad, len(items))
    samples = read_samples(model, items, workers=workers, report=faults, kind=kind)
    gauge = Gauge(model, list(samples), batch_size)
    with ui.progress(len(gauge.layers), "layers") as advance:
        plan, drop, drops = choose(gauge, bits, budget, advance)
    weights = model.vae.state_dict()
    tensors, about = packed_weights(weights, bits_of_tensors(gauge.layers, plan))
    psnr = {"before": gauge.before, "after": gauge.before - drop, "drop": drop, "most": budget}
    measured = {"data": data, "images": len(gauge.samples), "psnr": psnr}
    layers = [
        {
            "layer": layer.place,
            "code": layer.code,
            "bits": plan[layer.place],
            "bytes_before": layer.sizes[32],
            "bytes_after": layer.sizes[plan[layer.place]],
            "drop": drops[layer.place][plan[layer.place]],
            "drops": drops[layer.place],
        }
        for layer in gauge.layers
    ]
    result = {
        "model": str(found.path),
        **measured,
        "bits": "auto" if bits is None else bits,
        "bytes": {"before": tensor_bytes(weights), "after": tensor_bytes(tensors)},
        "layers": layers,
        "bad_files": len(faults.all),
    }
    return result, tensors, {"layers": plan, "tensors": about, **measured}


def _print(result: dict[str, Any]) -> None:
    columns = (
        ui.Column("layer"),
        ui.Column("code", shrink=True, optional=1),
        ui.Column("bits", number=True),
        ui.Column("bytes before", number=True),
        ui.Column("after", number=True),
        ui.Column("drop (dB)", number=True),
    )
    rows = [
        (
            each["layer"],
            each["code"],
            str(each["bits"]),
            f"{each['bytes_before']:,}",
            f"{each['bytes_after']:,}",
            f"{each['drop']:.4f}",
        )
        for each in result["layers"]
    ]
    psnr, size = result["psnr"], result["bytes"]
    total = ("all weights", "", "", f"{size['before']:,}", f"{size['after']:,}", f"{psnr['drop']:.4f}")
    ui.table(columns, rows, total=total)
    where = f"{result['images']} images of {result['data']}"
    ui.data(f"PSNR {psnr['before']:.3f} dB -> {psnr['after']:.3f} dB on {where} (at most {psnr['most']:g} dB less)")
    ui.data(f"{size['before'] / size['after']:.2f} times fewer bytes of weights")
    ui.say("a layer's drop is that of its bits alone; the total is measured with all of them")
