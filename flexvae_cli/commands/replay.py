"""`flexvae replay`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from flexvae_cli import ui
from flexvae_cli.commands.options import JsonOption
from flexvae_cli.paths import shown


def replay(
    report: Annotated[Path, typer.Argument(metavar="RUN/nan-step-K.json", help="What training wrote of the step.")],
    device: Annotated[
        str | None, typer.Option("--device", metavar="DEVICE", help="Where; by default as the run's config says.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Take a step again whose loss or gradient was not finite, and name the first layer where it went wrong.

    Training goes on in memory from the last checkpoint before that step, with the same images and the same noise; the
    run itself is not touched.
    """
    from flexvae_cli.engine.replay import replay as take_again

    with ui.progress(0, "steps") as advance:
        result = take_again(report, device, lambda done, total: advance(done, "", total=total))
    finding = result.finding
    if as_json:
        ui.json(
            {
                "step": result.step,
                "started_from": str(result.started_from),
                "finding": asdict(finding) if finding else None,
                "images": result.images,
            }
        )
        return
    ui.say(f"step {result.step}, from {shown(result.started_from)}")
    if finding is None:
        ui.say("all numbers were finite this time: the device, the library or the images are not what they were")
        return
    layer = f"{finding.layer} ({finding.code})" if finding.code else finding.layer
    ui.say(f"first not finite: the {finding.what} of {layer}, in micro-batch {finding.micro_batch + 1}")
    ui.say(f"its images: {', '.join(result.images[:8])}" + (" ..." if len(result.images) > 8 else ""))
