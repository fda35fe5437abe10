"""`flexvae stats`."""

from __future__ import annotations

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

if TYPE_CHECKING:
    from flexvae_cli.engine.modelfiles import ModelFiles


def stats(
    model: ModelArgument,
    data: DataArgument,
    write: Annotated[
        Path | None,
        typer.Option("--write", metavar="BUNDLE", help="A new bundle with these statistics in it.", show_default=False),
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Take only the first images.")] = None,
    batch_size: BatchOption = 8,
    device: DeviceOption = "auto",
    workers: WorkersOption = 2,
    max_bad: MaxBadOption = MAX_BAD,
    as_json: JsonOption = False,
) -> None:
    """Measure the latents of a data set.

    Mean, deviation and range of every latent channel, its divergence from the standard normal, and how many units are
    active: those whose posterior mean varies by more than 0.01 over the data (arXiv:1509.00519); how the quantizers of
    the encoder and the bottleneck use their codes. --json has histograms as well. --write makes a bundle whose latents
    are normalized by these numbers; the model itself stays as it is.
    """
    check_inputs(model, data, device=device)
    if write is not None:
        from flexvae_cli.engine.folders import require_new

        require_new(write)
    found = model_files(model)
    result = _measure(found, data, limit, batch_size, device, workers, max_bad)
    if write is not None:
        from flexvae_cli.engine.modelfiles import write_bundle

        write_bundle(found, write, latents={key: [c[key] for c in result["channels"]] for key in ("mean", "std")})
    if as_json:
        ui.json(result)
    else:
        _print(result)
    if write is not None:
        ui.say(f"wrote a bundle with these statistics to {write}")


def _measure(
    found: ModelFiles, data: str, limit: int | None, batch_size: int, device: str, workers: int, max_bad: float
) -> dict[str, Any]:
    from flexvae_cli.engine.evaluation.channels import LatentStatistics, gather
    from flexvae_cli.engine.evaluation.codes import codes_counted, told
    from flexvae_cli.engine.inference import read_samples
    from flexvae_cli.engine.kind import samples_in

    kind, items = samples_in(found.model, data, where="DATA")
    items = items[:limit]
    faults, statistics = Faults(max_bad, len(items)), LatentStatistics()
    model = load_on(found, device, exact=True)
    with ui.progress(len(items), "images") as advance, codes_counted(model.vae) as quantizers:
        samples = read_samples(model, items, workers=workers, report=faults, kind=kind)
        for done in gather(model, samples, statistics, batch_size):
            advance(done + len(faults.all))
    return {
        "model": str(found.path),
        "weights_hash": found.weights_hash,
        "bottleneck": found.model["bottleneck"],
        "bad_files": len(faults.all),
        "recorded": found.model.get("latents", {}),
        **statistics.values(),
        "quantizers": told(quantizers),
    }


def _print(result: dict[str, Any]) -> None:
    titles = ("channel", "mean", "std", "scaling", "min", "max", "KL (nats)")
    keys = ("mean", "std", "scaling", "min", "max", "kl")
    rows = [
        (str(each["channel"]), *(_number(each[key]) for key in keys), "yes" if each["active"] else "no")
        for each in result["channels"]
    ]
    together = result["all"]
    optional = {"min": 1, "max": 1, "scaling": 2}  # left out on a narrow terminal
    columns = [*(ui.Column(t, number=True, optional=optional.get(t, 0)) for t in titles), ui.Column("active")]
    total = ("all", *(_number(together.get(key)) for key in keys), "")
    ui.table(columns, rows, total=total)
    active = result["active"]
    units = f", {active['units']:,} of {active['of_units']:,} units" if active["units"] is not None else ""
    ui.data(f"active: {active['channels']} of {len(rows)} channels{units}")
    if result["kl_per_image"] is not None:
        ui.data(f"KL per image: {result['kl_per_image']:,.1f} nats")
    for each in result["quantizers"]:
        books = f"{each['codebooks']} codebooks of " if each["codebooks"] > 1 else ""
        use = f"{100 * each['usage']:.1f} % of {books}{each['codes']:,} codes used"
        ui.data(f"{each['place']}: {use}, entropy {each['entropy']:.2f} bits, perplexity {each['perplexity']:,.1f}")
    ui.say(f"{result['images']:,} images, {result['positions']:,} positions; scaling is 1 / std, KL is per position")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
