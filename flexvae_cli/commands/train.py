"""`flexvae train`."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flexvae_cli import ui
from flexvae_cli.commands.options import ConfigOption, JsonOption, SetOption
from flexvae_cli.paths import shown

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

    from flexvae_cli.engine.events import Event
    from flexvae_cli.engine.rundir import RunDirectory

TERMS_APART = ("loss", "lr", "images_per_second", "data_wait", "gradient_norm", "psnr", "ssim")


def train(
    config: ConfigOption = None,
    overrides: SetOption = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the newest whole checkpoint; start afresh where there is none.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Train an autoencoder as a config says.

    Everything is checked before training starts. Ctrl-C saves a checkpoint and stops; --resume goes on from there, to
    the same weights, bit for bit, as if it had never stopped.
    """
    from flexvae_cli.config import find_config, load_config
    from flexvae_cli.plan import make_plan, require_inputs

    path = find_config(config)
    plan = make_plan(load_config(path, overrides or ()))
    require_inputs(plan.settings)

    from flexvae_cli.engine.rundir import RunDirectory

    with RunDirectory(plan.settings.train.run_dir, resume=resume) as run:
        from flexvae_cli.engine import loop
        from flexvae_cli.engine.records import recorded

        events = recorded(loop.train(plan, loop.gather(plan), run, resume=resume), run)
        summary, signal = _follow(events, run, path, plan.settings.train.max_steps or 0)
    if as_json:
        ui.json(summary)
    if signal:
        raise typer.Exit(128 + signal)


def _follow(events: Generator[Event], run: RunDirectory, config: Path, steps: int) -> tuple[dict[str, object], int]:
    """Tell the terminal and the run's log of all events; returns the last metrics and the signal that stopped it."""
    from flexvae_cli.engine.events import Advanced, Finished, Logged, Started, Validated

    summary: dict[str, object] = {"run": str(run.path)}
    signal = 0
    with contextlib.closing(events), ui.progress(steps, "steps") as advance:
        for event in events:
            if isinstance(event, Started):
                advance(event.step, "", total=event.max_steps)
            if isinstance(event, Advanced):
                advance(event.step, "")
            elif isinstance(event, Logged | Validated):
                kind = "train" if isinstance(event, Logged) else "validation"
                summary[kind] = {"step": event.step, **event.values}
            elif isinstance(event, Finished):
                summary["step"], signal = event.step, event.signal
            for line in told(event, run, config):
                run.append_log(line)
                ui.say(line)
    return summary, signal


def told(event: Event, run: RunDirectory, config: Path) -> list[str]:
    """What the terminal and the log say of an event."""
    from flexvae_cli.engine import events as e

    match event:
        case e.Started():
            held = f"{event.validation_images} held out" if event.validation_images else "none held out"
            verb = f"continuing at step {event.step}" if event.resumed else "starting"
            return [
                f"{verb}: {shown(run.path)}",
                f"{event.parameters:,} parameters, {event.training_images} images ({held}), {event.device}, "
                f"{event.max_steps:,} steps, {event.steps_per_epoch:,} to an epoch",
            ]
        case e.Noticed():
            return [f"note: {event.text}"]
        case e.BadFileMet():
            return [f"skipped: {event.name} {event.reason}"]
        case e.Logged():
            return [f"step {event.step:>6}  {_numbers(event.values)}"]
        case e.Validated():
            return [f"validation at step {event.step}:  {_numbers(event.values)}"]
        case e.Finished(signal=0):
            spent = f"done: {event.step:,} steps, {event.seconds:.0f} s in this session"
            return [f"{spent}; next: flexvae infer {shown(run.path)} INPUT OUTPUT"]
        case e.Finished():
            return [f"stopped at step {event.step}, saved; continue with: flexvae train --config {config} --resume"]
        case _:
            return []


def _numbers(values: Mapping[str, float]) -> str:
    """`loss 0.0123 (reconstruction 0.0101, kld 312)  lr 4.0e-04  psnr 27.31 dB  82 images/s  data wait 2 %`."""
    terms = ", ".join(f"{name} {value:.4g}" for name, value in values.items() if name not in TERMS_APART)
    parts = [f"loss {values['loss']:.5f} ({terms})"]
    formats = {
        "gradient_norm": "gradient {:.3g}",
        "lr": "lr {:.2e}",
        "psnr": "PSNR {:.2f} dB",
        "ssim": "SSIM {:.4f}",
        "images_per_second": "{:.1f} images/s",
    }
    parts += [text.format(values[name]) for name, text in formats.items() if name in values]
    if "data_wait" in values:
        parts.append(f"data wait {100 * values['data_wait']:.0f} %")
    return "  ".join(parts)
