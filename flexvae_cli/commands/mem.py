"""`flexvae mem`."""

from __future__ import annotations

from dataclasses import asdict
from enum import Enum
from math import ceil
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flexvae_cli import ui
from flexvae_cli.commands._sizes import size
from flexvae_cli.commands.options import ConfigOption, JsonOption, SetOption

if TYPE_CHECKING:
    from flexvae_cli.config import Config
    from flexvae_cli.engine.memory.answer import Answer
    from flexvae_cli.engine.memory.child import Trial


class Probe(Enum):
    """Whether to take real steps."""

    AUTO = "auto"
    NEVER = "never"
    ALWAYS = "always"


class Mode(Enum):
    """What is to fit."""

    TRAIN = "train"
    INFER = "infer"
    ENCODE = "encode"
    DECODE = "decode"


class Checkpointing(Enum):
    """What is computed again instead of kept."""

    OFF = "off"
    BLOCKS = "blocks"


class Allocator(Enum):
    """How torch's allocator for CUDA is set up."""

    DEFAULT = "default"
    EXPANDABLE = "expandable"


EMA_DECAY = 0.999  # any decay takes the same memory


def mem(
    config: ConfigOption = None,
    overrides: SetOption = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Samples in memory at once; by default batch_size / accumulate.")
    ] = None,
    memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Memory to fill, as in 24GiB; by default what the device has.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(metavar="DEVICE", help="Auto, cpu or cuda[:N]: where to measure.")
    ] = None,
    gpu: Annotated[
        str | None, typer.Option(metavar="NAME", help="A GPU to predict for, as in h100-80; auto is this machine's.")
    ] = None,
    probe: Annotated[
        Probe, typer.Option(help="Real steps: auto measures unless another GPU is named, never predicts.")
    ] = Probe.AUTO,
    mode: Annotated[Mode, typer.Option(help="What is to fit; all but train is predicted.")] = Mode.TRAIN,
    precision: Annotated[
        str | None, typer.Option(metavar="NAME", help="Instead of train.precision: fp32, tf32, bf16 or fp16.")
    ] = None,
    checkpointing: Annotated[
        Checkpointing | None, typer.Option(help="Instead of train.activation_checkpointing.")
    ] = None,
    optimizer: Annotated[str | None, typer.Option(metavar="NAME", help="Instead of optimizer.name.")] = None,
    ema: Annotated[
        bool | None, typer.Option("--ema/--no-ema", help="With a running mean of the weights, or not.")
    ] = None,
    accumulate: Annotated[int | None, typer.Option(min=1, help="Instead of train.accumulate.")] = None,
    allocator: Annotated[
        Allocator | None, typer.Option(help="Of a prediction: expandable is expandable_segments:True.")
    ] = None,
    layers: Annotated[int | None, typer.Option(min=0, help="Of a prediction: layers to list, 5 by default.")] = None,
    assert_batch: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Exit with code 5 where a batch of N does not fit.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Tell what training needs of memory, and the largest batch that fits.

    Takes real training steps on random samples in child processes, where memory that runs out harms nothing. With
    --gpu it predicts instead, for a GPU that need not be here.
    """
    from flexvae_cli.config import find_config, load_config
    from flexvae_cli.plan import make_plan

    given = {
        "mem.memory": memory,
        "train.device": device if gpu != "auto" or probe is Probe.NEVER else device or "cuda",
        "train.precision": precision,
        "train.activation_checkpointing": checkpointing and checkpointing.value,
        "optimizer.name": optimizer,
        "train.accumulate": accumulate,
        "ema.decay": None if ema is None else EMA_DECAY if ema else 0.0,
    }
    measures = probe is Probe.ALWAYS or (probe is Probe.AUTO and gpu in (None, "auto") and mode is Mode.TRAIN)
    predicting = {"--allocator": allocator, "--layers": layers, f"--mode {mode.value}": mode is not Mode.TRAIN or None}
    _require_consistent(measures, gpu, device, [name for name, value in predicting.items() if value is not None])
    options = [f"{key}={value}" for key, value in given.items() if value is not None]
    loaded = load_config(find_config(config), [*(overrides or ()), *options])
    parameters = make_plan(loaded).parameters
    train = loaded.settings.train
    batch = batch or ceil(train.batch_size / train.accumulate)
    if measures:
        _measure(loaded, batch, parameters, assert_batch, as_json=as_json)
        return
    from flexvae_cli.commands._forecast import ask
    from flexvae_cli.engine.memory.devices import find_gpu
    from flexvae_cli.engine.memory.forecast import Question, require_precision, usable

    if gpu == "auto":
        from flexvae_cli.engine.memory.here import gpu_here

        found = gpu_here()
    else:
        found = find_gpu(gpu or "")
    require_precision(train.precision, found)
    most = usable(found, loaded.settings.mem.memory)
    question = Question(
        loaded.document,
        str(loaded.path),
        found,
        batch,
        most,
        mode.value,
        (allocator or Allocator.DEFAULT).value,
        assert_batch,
    )
    ask(question, layers, as_json=as_json)


def _require_consistent(measures: bool, gpu: str | None, device: str | None, predicting: list[str]) -> None:
    """Refuse options that would count for nothing."""
    from flexvae_cli.errors import Problem, UsageError

    problems = []
    if measures and gpu not in (None, "auto"):
        what = f"real steps are taken on this machine's device, not on '{gpu}'"
        problems.append(Problem(what, "--gpu", hint="leave --gpu or --probe always out"))
    if measures:
        what = "counts for predictions alone"
        problems += [Problem(what, name, hint="name a GPU with --gpu, or use --probe never") for name in predicting]
    elif device is not None:
        problems.append(Problem("says where to measure; a prediction is for --gpu", "--device", hint="leave it out"))
    if not measures and gpu is None:
        problems.append(Problem("a prediction is for a GPU", "--gpu", hint="name one, as in --gpu h100-80"))
    if problems:
        raise UsageError(*problems)


def _measure(config: Config, batch: int, parameters: int, assert_batch: int | None, *, as_json: bool) -> None:
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
