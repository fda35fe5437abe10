"""How `flexvae mem` takes real steps and tells what they needed."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from flexvae_cli import ui
from flexvae_cli.commands._sizes import size

if TYPE_CHECKING:
    from flexvae_cli.config import Config
    from flexvae_cli.engine.memory.answer import Answer
    from flexvae_cli.engine.memory.child import Trial


def measure(config: Config, batch: int, parameters: int, assert_batch: int | None, *, as_json: bool) -> None:
    """Real steps on the config's device."""
    from flexvae_cli.engine.memory.answer import answer, asker, fits
    from flexvae_cli.errors import ResourceError

    ask = asker(config, batch, lambda n: ui.say(f"trying batch {n:,}"))
    result = answer(config, batch, parameters, ask)
    if as_json:
        ui.json(document(config, result))
    else:
        print_answer(config, result)
    if result.one is not None:
        raise ResourceError(f"not even one sample fits into {size(result.memory)}: {told(result.one)}")
    if assert_batch is not None and not fits(result, assert_batch, ask):
        limits = f"the largest that fits into {size(result.memory)} is {result.found.largest:,}"
        raise ResourceError(f"batch {assert_batch:,} does not fit; {limits}")


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
        "optimizer": "optimizer and other state",
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
    if measured.note:
        ui.data(f"note: {measured.note}")
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
    measured, found = answer.measured, answer.found
    trials = [*found.trials] if answer.one in (None, measured) else [*found.trials, answer.one]
    return {
        "config": str(config.path),
        "device": measured.device,
        "batch": measured.batch,
        "accumulate": config.settings.train.accumulate,
        "bytes": parts(answer),
        "available": measured.available,
        "memory": answer.memory,
        "largest_batch": found.largest,
        "too_large_batch": found.beyond.batch if found.beyond else None,
        "notes": [measured.note] if measured.note else [],
        "trials": [{"batch": t.batch, "outcome": t.outcome, "peak": t.peak or None} for t in trials if t],
    }
