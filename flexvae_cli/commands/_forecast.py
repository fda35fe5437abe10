"""How `flexvae mem` asks for a prediction and tells it."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from flexvae_cli import ui
from flexvae_cli.commands._sizes import size

if TYPE_CHECKING:
    from flexvae_cli.engine.memory.forecast import Forecast, Question

DOES = {
    "train": "a training step",
    "infer": "a reconstruction",
    "encode": "encoding",
    "decode": "decoding",
}
FEW = 5  # layers
ROWS = {
    "parameters": "parameters",
    "gradients": "gradients",
    "state": "optimizer and other state",
    "ema": "running mean of the weights",
    "samples": "samples",
    "activations": "activations kept for the backward pass",
    "temporaries": "temporaries",
    "workspace": "cuDNN's workspace",
    "cublas": "cuBLAS's workspace",
    "slack": "held back by torch's allocator",
    "total": "total",
}


def ask(question: Question, shown: int | None, *, as_json: bool) -> Forecast:
    """Predict, tell, and fail where the asserted batch, or a single sample, does not fit.

    Args:
        question: what to predict.
        shown: layers to list; by default the first few in a table, and all as JSON.
        as_json: whether as JSON.

    Returns:
        What was found.

    Raises:
        ResourceError: it does not fit.
    """
    from flexvae_cli.engine.memory.forecast import forecast
    from flexvae_cli.errors import ResourceError

    ui.say(f"following {DOES[question.mode]} without computing it")
    found = forecast(question)
    if as_json:
        ui.json(document(question, found, shown))
    else:
        print_forecast(question, found, FEW if shown is None else shown)
    if not found.safe:
        needs = f"it is predicted to need {size(found.one)}, and a margin beside"
        raise ResourceError(f"not even one sample is sure to fit into {size(question.memory)}: {needs}")
    if found.asserted_fits is False:
        limits = f"the largest that is sure to fit into {size(question.memory)} is {found.safe:,}"
        raise ResourceError(f"batch {question.asserted:,} does not fit; {limits}")
    return found


def print_forecast(question: Question, found: Forecast, shown: int) -> None:
    """Where the memory goes, which layers keep most, and the largest batch."""
    where = f"{DOES[question.mode]} at batch {found.batch:,} on {question.gpu.name}, {found.precision}"
    columns = (ui.Column(where), ui.Column("MiB", number=True), ui.Column("share", number=True, optional=1))
    parts = bytes_of(found)
    rows = [(ROWS[key], *_amount(parts[key], found.reserved)) for key in ROWS if key in parts]
    ui.table(columns, rows[:-1], total=rows[-1])
    codes = {layer.key: layer.code for layer in found.layers}
    place = f"{found.layer} {codes.get(found.layer, '')}".strip()
    ui.data(f"the peak stands in the {found.stage} pass{f' of {place}' if place else ''}, at {operation(found)}")
    kept = found.layers[:shown]
    if kept:
        names = (ui.Column("layer"), ui.Column("code", shrink=True))
        ui.table(
            (*names, ui.Column("keeps MiB", number=True), columns[-1]),
            [(each.key, each.code, *_amount(each.kept, found.reserved)) for each in kept],
        )
    if found.safe:
        beyond = f"; batch {found.too_large:,} does not fit so" if found.too_large else ""
        ui.data(f"largest batch that fits into {size(question.memory)}: {found.safe:,}, with a margin{beyond}")
    if found.limit:
        ui.data(f"largest batch without one, where the allocator gives back what it holds: {found.limit:,}")
    print_more(question, found)
    asked = "by rule" if found.workspaces == "rule" else f"as {found.workspaces} names them"
    ui.data(f"predicted, not measured: grade {found.grade}, margin {found.margin:.0%}; workspaces {asked}")
    for note in found.notes:
        ui.data(f"note: {note}")


def print_more(question: Question, found: Forecast) -> None:
    """What was asked for beside: the largest input, what would help, what to recompute."""
    if question.resolution:
        beyond = f"; {found.too_large_input} does not fit so" if found.too_large_input else ""
        most = f"{found.input}, with a margin" if found.input else "none"
        ui.data(f"largest input at batch {found.batch:,}: {most}{beyond}")
    if question.what_if:
        names = (ui.Column("what would help"), ui.Column("largest batch", number=True))
        rows = [(c.options, f"{c.largest:,}", f"{c.reserved / 2**20:,.1f}") for c in found.changes]
        now = ("as it is", f"{found.safe:,}", f"{found.reserved / 2**20:,.1f}")
        ui.table((*names, ui.Column(f"MiB at batch {found.batch:,}", number=True)), [now, *rows])
    if found.recomputed is not None:
        from flexvae_cli.commands._written import lines_for
        from flexvae_cli.config.toml_writer import to_toml

        ui.data(f"\nso that batch {found.batch:,} fits:" if found.safe >= found.batch else "\nall that can be done:")
        ui.data(to_toml(lines_for(found.recomputed)))


def _amount(count: int, whole: int) -> tuple[str, str]:
    return f"{count / 2**20:,.1f}", f"{count / max(1, whole):.1%}"


def operation(found: Forecast) -> str:
    """`aten.convolution_backward.default` as `convolution_backward`."""
    parts = found.operation.split(".")
    return parts[1] if len(parts) == 3 else found.operation


def bytes_of(found: Forecast) -> dict[str, int]:
    """What is held at the peak, by what it is for, what the allocator holds beside, and the sum: what is reserved."""
    known = {key: found.parts[key] for key in ROWS if key in found.parts}
    return {**known, "slack": found.slack, "total": sum(known.values()) + found.slack}


def document(question: Question, found: Forecast, shown: int | None = None) -> dict[str, Any]:
    """The prediction for `--json`; sizes are bytes."""
    return {
        "config": question.config,
        "gpu": {"name": question.gpu.name, "total": question.gpu.total, "capability": list(question.gpu.capability)},
        "mode": question.mode,
        "batch": found.batch,
        "precision": found.precision,
        "allocator": question.allocator,
        "bytes": bytes_of(found),
        "tensors": found.tensors,
        "allocated": found.allocated,
        "reserved": found.reserved,
        "peak": {"stage": found.stage, "layer": found.layer, "operation": operation(found)},
        "layers": [asdict(layer) for layer in found.layers[:shown]],
        "memory": question.memory,
        "largest_batch": found.safe,
        "too_large_batch": found.too_large,
        "limit_batch": found.limit,
        "grade": found.grade,
        "workspaces": found.workspaces,
        "margin": found.margin,
        "largest_input": found.input or None,
        "what_if": [asdict(change) for change in found.changes],
        "recomputed": None if found.recomputed is None else list(found.recomputed),
        "processes": question.processes,
        "evaluations": found.evaluations,
        "notes": list(found.notes),
    }
