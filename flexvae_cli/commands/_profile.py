"""`flexvae train --profile`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flexvae_cli import ui
from flexvae_cli.commands._loaded import loaded_config

if TYPE_CHECKING:
    from flexvae_cli.engine.profiling import Profile

SHOWN = 20  # layers in the table


def profile_step(config: Path | None, overrides: Sequence[str], *, as_json: bool) -> None:
    """Show where the time of a training step goes.

    Raises:
        UsageError: the config is wrong, or several processes were started.
    """
    from flexvae_cli.engine.place import find_place
    from flexvae_cli.errors import UsageError
    from flexvae_cli.plan import make_plan, require_inputs

    if not find_place(os.environ).alone:
        raise UsageError("--profile looks at one process", hint="start it without torchrun")
    plan = make_plan(loaded_config(config, overrides))
    require_inputs(plan.settings)
    from flexvae_cli.engine.profiling import profile_training
    from flexvae_cli.engine.starting import gather

    with ui.progress(0, "steps") as advance:
        found = profile_training(plan, gather(plan), lambda done, total: advance(done, total=total))
    if as_json:
        ui.json(_document(found))
    else:
        _print(found)
    ui.say(f"wrote a trace for https://ui.perfetto.dev to {found.trace}")


def _print(found: Profile) -> None:
    share = ui.Column("share", number=True)
    time = ui.Column("ms", number=True)
    rows = [(name, _ms(s), _percent(s, found.seconds)) for name, s in found.stages.items()]
    total = ("step", _ms(found.seconds), "100 %")
    ui.table([ui.Column("stage"), time, share], rows, total=total)
    ui.data("")
    columns = [
        ui.Column("layers"),
        *(ui.Column(name, number=True) for name in ("entries", "forward ms", "backward ms")),
    ]
    shown = [
        (e.code, str(e.entries), _ms(e.forward), _ms(e.backward), _percent(e.forward + e.backward, found.seconds))
        for e in found.layers[:SHOWN]
    ]
    ui.table([*columns, share], shown)
    ui.data(f"means of {found.steps} steps; the device is waited for at every layer, which makes a GPU's step longer")


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:,.1f}"


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %"


def _document(found: Profile) -> dict[str, Any]:
    layers = [
        {"code": e.code, "entries": e.entries, "forward": e.forward, "backward": e.backward} for e in found.layers
    ]
    return {
        "steps": found.steps,
        "seconds": found.seconds,
        "stages": found.stages,
        "layers": layers,
        "trace": str(found.trace),
    }
