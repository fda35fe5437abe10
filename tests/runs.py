"""Run directories for tests, as training leaves them, without training."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from flexvae_cli.engine.events import Event, Logged, Started, Validated
from flexvae_cli.engine.records import recorded
from flexvae_cli.engine.rundir import RunDirectory

STEPS = 100


def settings_of(run: Path, photos: Path) -> dict[str, Any]:
    """The resolved settings of a run on a folder of photographs."""
    return {
        "model": {"encoder": "e.json", "decoder": "d.json", "bottleneck": "KL", "init": None},
        "data": {"source": str(photos), "input": "3x16x16", "validation": 0.5},
        "optimizer": {"lr": 1e-3},
        "train": {"run_dir": str(run), "max_steps": STEPS},
    }


def events_of(steps: int) -> Iterator[Event]:
    """What training tells: a line of numbers every second step, a validation every tenth."""
    yield Started(0, STEPS, 5, "cpu", 402_923, 44, 16, resumed=False)
    for step in range(2, steps + 1, 2):
        loss = math.exp(-step / 30)
        speed = {"images_per_second": 80.0 + step % 7, "data_wait": 0.02, "memory_bytes": 8.1e8}
        values = {"loss": loss, "reconstruction": loss / 20, "kld": 10.0 * step, "gradient_norm": 1.0, "lr": 1e-3}
        yield Logged(step, values | speed)
        if step % 10 == 0:
            yield Validated(
                step, {"loss": 1.1 * loss, "reconstruction": loss / 18, "psnr": 20 + step / 10, "ssim": 0.8}
            )


def make_run(path: Path, make_model: Callable[..., Path], photos: Path, steps: int = STEPS) -> Path:
    """A run of `STEPS` steps that was killed, or finished, behind `steps`, with a preview at two of them."""
    from flexvae_cli.engine.model import load
    from flexvae_cli.engine.preview import preview
    from flexvae_cli.engine.report.latents import images_of

    settings = settings_of(path, photos)
    with RunDirectory(path) as run:
        run.write_config(settings)
        make_model(path)
        for _ in recorded(events_of(steps), run):
            pass
        model = load(path)
        for step in (10, 20):
            run.write_preview(f"step-{step:08d}.png", preview(model.vae, images_of(model, settings["data"], 3)))
        run.append_log("starting: run")
        run.append_log(f"402,923 parameters, 44 images (16 held out), cpu, {STEPS} steps, 5 to an epoch")
        if steps == STEPS:
            run.append_log(f"done: {STEPS} steps, 3 s in this session; next: nothing")
    return path


def hostile(run: Path) -> Path:
    """The same with every name and text a piece of HTML or a script, and files that are torn or damaged."""
    bad = '"><script>alert(1)</script><img src=http://example.com/x onerror=alert(2)>'
    with RunDirectory(run, resume=True) as held:
        held.append_bad_file(f"{bad}.png", f"is {bad}")
        held.append_log(bad)
        held.append_metrics({"step": 98, "kind": "train", f"{bad}{{x}}": 1.0, "loss": math.nan})
        held.append_metrics({"step": 99, "kind": "train", f"{bad}{{x}}": 2.0, "loss": 1e307})
    config = json.loads((run / "config.json").read_text())
    config["flexvae"] = bad
    config["settings"]["optimizer"][bad] = bad
    (run / "config.json").write_text(json.dumps(config))
    (run / "nan-step-00000004.json").write_text(json.dumps({"step": 4, "micro_batches": [[bad], ["b.png"]]}))
    (run / "previews/step-00000030.png").write_bytes(b"<script>alert(3)</script>")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('no json\n[1]\n{"step": "x"}\n{"step": 100, "kind": "train", "lo')
    return run.rename(run.with_name("<b>run & 'co' \"x\""))
