"""`flexvae train`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from flexvae_cli import ui
from flexvae_cli.commands._loaded import loaded_config
from flexvae_cli.commands._profile import profile_step
from flexvae_cli.commands._telling import follow
from flexvae_cli.commands._voice import Voice, follow_silently, one_voice
from flexvae_cli.commands.options import ConfigOption, JsonOption, SetOption


def train(
    config: ConfigOption = None,
    overrides: SetOption = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the newest whole checkpoint; start afresh where there is none.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Start though the disk has less room than the checkpoints will need.")
    ] = False,
    profile: Annotated[
        bool,
        typer.Option("--profile", help="Show where the time of a step goes, and write a trace; no run is begun."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Train an autoencoder as a config says.

    Everything is checked before training starts. Ctrl-C saves a checkpoint and stops; --resume goes on from there, to
    the same weights, bit for bit, as if it had never stopped.
    """
    from flexvae_cli.engine.place import find_place

    if profile:
        profile_step(config, overrides or (), as_json=as_json)
        return
    with one_voice(find_place(os.environ)) as voice:
        signal = _train(voice, config, overrides or (), resume, force, as_json)
    if signal:
        raise typer.Exit(128 + signal)


def _train(
    voice: Voice, config: Path | None, overrides: Sequence[str], resume: bool, force: bool, as_json: bool
) -> int:
    """Train, alone or with others, of whom one writes and speaks; returns the signal that stopped it."""
    from flexvae_cli.plan import make_plan, require_inputs

    loaded = loaded_config(config, overrides)
    plan = make_plan(loaded)
    require_inputs(plan.settings)
    world = voice.meet(plan.settings.train)

    from flexvae_cli.engine.rundir import RunDirectory

    run, first = RunDirectory(plan.settings.train.run_dir, resume=resume), voice.place.rank == 0
    with run if first else nullcontext():
        from flexvae_cli.engine import loop
        from flexvae_cli.engine.observers import make_observers, observed
        from flexvae_cli.engine.records import recorded
        from flexvae_cli.engine.starting import gather

        with make_observers(plan.callbacks if first else ()) as observers:
            events = loop.train(plan, gather(plan, world), run, resume=resume, force=force)
            if first:
                shown = observed(recorded(events, run), observers)
                summary, signal = follow(shown, run, loaded.path, plan.settings.train.max_steps or 0)
            else:
                summary, signal = {}, follow_silently(events)
    if as_json and first:
        ui.json(summary)
    if world is not None:
        world.leave()  # not before all is written and said: torchrun ends the others when one is gone
    return signal
