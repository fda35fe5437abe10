"""`flexvae mem`."""

from __future__ import annotations

from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flexvae_cli.commands._loaded import loaded_config
from flexvae_cli.commands._mem_options import (
    Allocator,
    Checkpointing,
    Mode,
    NormDtype,
    Probe,
    require_consistent,
    require_one_input,
    require_used,
    require_writable,
)
from flexvae_cli.commands.options import ConfigOption, JsonOption, SetOption

if TYPE_CHECKING:
    from flexvae_cli.config import Config
    from flexvae_cli.engine.memory.devices import Gpu


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
        str | None,
        typer.Option(
            metavar="NAME",
            help="Instead of train.precision: fp32, tf32, bf16 or fp16.",
        ),
    ] = None,
    checkpointing: Annotated[
        Checkpointing | None,
        typer.Option(help="Instead of train.activation_checkpointing; auto chooses what lets the batch fit."),
    ] = None,
    norm_dtype: Annotated[NormDtype | None, typer.Option(help="Instead of train.norm_dtype.")] = None,
    channels_last: Annotated[
        bool | None, typer.Option("--channels-last/--contiguous", help="Instead of train.layout.")
    ] = None,
    optimizer: Annotated[str | None, typer.Option(metavar="NAME", help="Instead of optimizer.name.")] = None,
    ema: Annotated[
        bool | None, typer.Option("--ema/--no-ema", help="With a running mean of the weights, or not.")
    ] = None,
    accumulate: Annotated[int | None, typer.Option(min=1, help="Instead of train.accumulate.")] = None,
    ddp: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Of a prediction: GPUs that train together, 1 by default.")
    ] = None,
    allocator: Annotated[
        Allocator | None,
        typer.Option(help="Of a prediction: expandable_segments or not, or as PYTORCH_ALLOC_CONF has it."),
    ] = None,
    layers: Annotated[int | None, typer.Option(min=0, help="Of a prediction: layers to list, 5 by default.")] = None,
    what_if: Annotated[
        bool, typer.Option("--what-if", help="Predict what would help as well; takes some seconds for each.")
    ] = False,
    max_resolution: Annotated[
        bool, typer.Option("--max-resolution", help="Predict the largest input at the batch as well.")
    ] = False,
    write: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a config that extends the given one by these options.")
    ] = None,
    assert_batch: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Exit with code 5 where a batch of N does not fit.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Tell what training needs of memory, and the largest batch that fits.

    Takes real training steps on random samples in child processes, where memory that runs out harms nothing. With
    --gpu it predicts instead, for a GPU that need not be here.
    """
    from flexvae_cli.plan import make_plan

    auto = checkpointing is Checkpointing.AUTO
    choices = {
        "train.precision": precision,
        "train.activation_checkpointing": checkpointing and ("off" if auto else checkpointing.value),
        "train.norm_dtype": norm_dtype and norm_dtype.value,
        "train.layout": None if channels_last is None else "channels-last" if channels_last else "contiguous",
        "optimizer.name": optimizer,
        "train.accumulate": accumulate,
        "ema.decay": None if ema is None else EMA_DECAY if ema else 0.0,
    }
    measures = probe is Probe.ALWAYS or (probe is Probe.AUTO and gpu in (None, "auto") and mode is Mode.TRAIN)
    predicting = {
        "--allocator": allocator,
        "--layers": layers,
        "--ddp": ddp,
        "--what-if": what_if or None,
        "--max-resolution": max_resolution or None,
        "--checkpointing auto": auto or None,
        f"--mode {mode.value}": mode is not Mode.TRAIN or None,
    }
    require_consistent(measures, gpu, device, [name for name, value in predicting.items() if value is not None])
    training = {
        "--checkpointing": checkpointing,
        "--norm-dtype": norm_dtype,
        "--channels-last/--contiguous": channels_last,
        "--optimizer": optimizer,
        "--ema/--no-ema": ema,
        "--accumulate": accumulate,
        "--ddp": ddp,
        "--write": write,
    }
    if mode is not Mode.TRAIN:
        require_used(mode, precision, [name for name, value in training.items() if value is not None])
    chosen = [f"{key}={value}" for key, value in choices.items() if value is not None]
    changes = [*(overrides or ()), *chosen]
    if write is not None:
        require_writable(write, changes, auto)
    where = device if gpu != "auto" or probe is Probe.NEVER else device or "cuda"
    settled = {
        "mem.memory": memory,
        "train.device": where,
        # What uses a trained net computes in fp32 unless it is told otherwise, whatever the net was trained in.
        "train.precision": None if mode is Mode.TRAIN else precision or "fp32",
    }
    own = [f"{key}={value}" for key, value in settled.items() if value is not None]
    loaded = loaded_config(config, [*changes, *own])
    if max_resolution:
        require_one_input(loaded)
    parameters = make_plan(loaded).parameters
    train = loaded.settings.train
    batch = batch or ceil(train.batch_size / (train.accumulate * (ddp or 1)))
    recomputed = None
    if measures:
        from flexvae_cli.commands._measured import measure

        measure(loaded, batch, parameters, assert_batch, as_json=as_json)
    else:
        recomputed = _predict(
            loaded,
            gpu or "",
            layers,
            as_json=as_json,
            batch=batch,
            mode=mode.value,
            processes=ddp or 1,
            asserted=assert_batch,
            what_if=what_if,
            choose=auto,
            resolution=max_resolution,
            **_allocator(allocator, keep=mode is not Mode.TRAIN or train.allocator == "keep"),
        )
    if write is not None:
        from flexvae_cli.commands._written import write_config

        write_config(write, loaded.path, changes, recomputed)


def _predict(config: Config, gpu: str, layers: int | None, *, as_json: bool, **asked: Any) -> tuple[str, ...] | None:
    """Predict for a GPU, and tell; returns the entries that were chosen to be recomputed."""
    from flexvae_cli.commands._forecast import ask
    from flexvae_cli.engine.memory.forecast import Question, require_precision, usable

    found = _gpu(gpu)
    require_precision(config.settings.train.precision, found)
    most = usable(found, config.settings.mem.memory, asked["processes"])
    question = Question(config.document, str(config.path), found, memory=most, **asked)
    return ask(question, layers, as_json=as_json).recomputed


def _gpu(name: str) -> Gpu:
    if name == "auto":
        from flexvae_cli.engine.memory.here import gpu_here

        return gpu_here()
    from flexvae_cli.engine.memory.devices import find_gpu

    return find_gpu(name)


def _allocator(given: Allocator | None, *, keep: bool) -> dict[str, Any]:
    """How the allocator is set up, as fields of a question; by default as training has it."""
    import os

    from flexvae_cli.engine.memory.allocator_settings import allocator_settings, settings_of_training

    if given is None:
        return settings_of_training(os.environ, keep=keep)
    return allocator_settings(os.environ) if given is Allocator.ENV else {"allocator": given.value}
