"""`flexvae mem`."""

from __future__ import annotations

from dataclasses import asdict
from math import ceil
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flexvae_cli import ui
from flexvae_cli.commands.options import ConfigOption, JsonOption, SetOption

if TYPE_CHECKING:
    from flexvae_cli.config import Config
    from flexvae_cli.engine.memory.answer import Answer
    from flexvae_cli.engine.memory.child import Trial


def mem(
    config: ConfigOption = None,
    overrides: SetOption = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Samples in memory at once; by default batch_size / accumulate.")
    ] = None,
    memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Memory to fill, as in 24GiB; by default what the device has.")
    ] = None,
    device: Annotated[str | None, typer.Option(metavar="DEVICE", help="Auto, cpu or cuda[:N].")] = None,
    assert_batch: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Exit with code 5 where a batch of N does not fit.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure what training needs of memory.

    Takes real training steps on random samples in child processes, where memory that runs out harms nothing, and finds
    the largest batch that fits.
    """
    from flexvae_cli.config import find_config, load_config
    from flexvae_cli.engine.memory.answer import answer, asker, fits
    from flexvae_cli.errors import ResourceError
    from flexvae_cli.plan import make_plan

    given = {"mem.memory": memory, "train.device": device}
    options = [f"{key}={value}" for key, value in given.items() if value is not None]
    loaded = load_config(find_config(config), [*(overrides or ()), *options])
    plan = make_plan(loaded)
    train = loaded.settings.train
    batch = batch or ceil(train.batch_size / train.accumulate)
    ask = asker(loaded, batch, lambda n: ui.say(f"trying batch {n:,}"))
    result = answer(loaded, batch, plan.parameters, ask)
    if as_json:
        ui.json(document(loaded, result))
    else:
        print_answer(loaded, result)
    if result.one is not None:
        raise ResourceError(f"not even one sample fits into {size(result.memory)}: {told(result.one)}")
    if assert_batch is not None and not fits(result, assert_batch, ask):
        limits = f"the largest that fits into {size(result.memory)} is {result.found.largest:,}"
        raise ResourceError(f"batch {assert_batch:,} does not fit; {limits}")


def size(count: int) -> str:
    """Bytes as a person reads them."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def told(trial: Trial) -> str:
    """What came of a trial: `batch 9 needs 1.21 GiB`."""
    ends = {
        "done": f"needs {size(trial.peak)}",
        "memory": "needs more",
        "killed": "was killed by the system, as if for memory",
        "time": "took too long to try",
    }
    return f"batch {trial.batch:,} {ends[trial.outcome]}"


def print_answer(config: Config, answer: Answer) -> None:
    """A table of the measured batch, and a line on the largest."""
    measured, found = answer.measured, answer.found
    columns = (
        ui.Column(f"a training step at batch {measured.batch:,} on {measured.device}"),
        ui.Column("MiB", number=True),
    )
    names = {
        "parameters": "parameters",
        "gradients": "gradients",
        "optimizer": "optimizer state (AdamW)",
        "activations": "activations and temporaries",
        "overhead": "Python, torch and its buffers" if measured.device == "cpu" else "held back by torch's allocator",
        "total": "total",
    }
    rows = [(names[key], f"{n / 2**20:,.1f}" if n is not None else "unknown") for key, n in parts(answer).items()]
    ui.table(columns, rows[:-1], total=rows[-1])
    if measured.outcome != "done":
        ui.data(f"{told(measured)}; {size(measured.available)} are available")
    if found.largest:
        beyond = told(found.beyond) if found.beyond else "the search goes no further"
        ui.data(f"largest batch that fits into {size(answer.memory)}: {found.largest:,} ({beyond})")
    accumulate = config.settings.train.accumulate
    if accumulate > 1:
        ui.data(f"a batch here is a micro-batch; {accumulate} of them make train.batch_size")


def parts(answer: Answer) -> dict[str, int | None]:
    """The bytes of a step at the measured batch, and their sum; None where the step did not come to its end."""
    measured = answer.measured
    return {
        **asdict(answer.states),
        "activations": answer.activations if measured.tensors else None,
        "overhead": answer.overhead if measured.tensors else None,
        "total": measured.peak or None,
    }


def document(config: Config, answer: Answer) -> dict[str, Any]:
    """The answer for `--json`; sizes are bytes."""
    found = answer.found
    trials = [*found.trials] if answer.one in (None, answer.measured) else [*found.trials, answer.one]
    return {
        "config": str(config.path),
        "device": answer.measured.device,
        "batch": answer.measured.batch,
        "accumulate": config.settings.train.accumulate,
        "bytes": parts(answer),
        "available": answer.measured.available,
        "memory": answer.memory,
        "largest_batch": found.largest,
        "too_large_batch": found.beyond.batch if found.beyond else None,
        "trials": [{"batch": t.batch, "outcome": t.outcome, "peak": t.peak or None} for t in trials if t],
    }
