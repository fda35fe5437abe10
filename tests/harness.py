"""Trainings that cost a fork each: a process that has imported all of it forks one `flexvae` after the other.

The tests of kills and signals start this as a program of its own, since a process with threads must not fork. It prints
a JSON object of what it found: python harness.py FOLDER random|points|signals|encode|encodes|steps COUNT SEED
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import os
import random
import re
import shutil
import signal
import sys
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from forks import CODES, SIGNALS, Child, Findings, Moment, fingerprint, gone, make_project, nothing, train
from interrupted_encodes import encoding, killed_encodes, stepwise_killed_encodes

from flexvae_cli.engine import checkpoint, files, loop, starting, validation
from flexvae_cli.engine.checkpoint import newest_checkpoint
from flexvae_cli.engine.data import dataset, sources
from flexvae_cli.engine.files import CRASH_POINTS
from flexvae_cli.engine.optimizer import Optimization
from flexvae_cli.engine.vae import VAE

MOMENTS = {
    "the images are looked at": Moment(sources, "image_size", [1, 10]),
    "the net is built": Moment(starting, "build_vae", [1]),
    "a sample is read": Moment(dataset.TrainingImages, "__getitem__", [1, 7, 20]),
    "the nets compute": Moment(VAE, "forward", [1, 2, 9]),
    "the optimizer steps": Moment(Optimization, "step", [1, 4]),
    "the config is written": Moment(files, "write_all", [1]),
    "a checkpoint is written": Moment(files, "write_all", [2, 3, 5, 6]),
    "a checkpoint is published": Moment(checkpoint, "publish_directory", [1, 2]),
    "an image is validated": Moment(validation, "scores", [1, 2]),
    "a preview is drawn": Moment(loop, "preview", [1]),
}
BEFORE_THE_LOOP = ("the images are looked at", "the net is built", "the config is written")


def killed_at_random(folder: Path, count: int, chance: random.Random, wanted: dict[str, object]) -> Findings:
    """Kill trainings at random moments, `count` times, and let each of them come to its end at last."""
    found, span = Findings(), seconds_of(folder)
    while found.kills < count and not found.failed:
        number = chance.choice([0, 0, 2])
        child = train(folder, number)
        while found.kills < count and not child.ended(chance.uniform(0, 0.7 * span)):
            child.kill()
            found.look(folder / "run")
            child = train(folder, number)
        found.close(child, folder / "run", wanted)
    return found


def killed_at_points(folder: Path, count: int, chance: random.Random, wanted: dict[str, object]) -> Findings:
    """Kill trainings `count` times at each point that is named for it."""
    found = Findings()
    for point in CRASH_POINTS:
        for _ in range(count):
            passage = chance.randint(1, 30 if point.startswith("file") else 6)
            child = train(folder, 0, lambda at=f"{point}:{passage}": os.environ.update(FLEXVAE_CRASH_AT=at))
            if child.end() != -signal.SIGKILL:
                found.failed = f"was not killed at {point}:{passage}: {child.said.read_text()}"
                return found
            found.look(folder / "run")
            found.close(train(folder, 0), folder / "run", wanted)
    return found


def signalled(folder: Path, count: int, chance: random.Random, wanted: dict[str, object]) -> Findings:
    """Signal trainings at every moment, and `count` times at random ones, and let each of them come to its end."""
    found, span = Findings(), seconds_of(folder)
    todo: list[tuple[str, int, int, bool]] = [
        (name, passage, number, twice)
        for name, moment in MOMENTS.items()
        for passage in moment.passages
        for number, twice in [*((number, False) for number in SIGNALS), (signal.SIGINT, True)]
        if not (twice and name in BEFORE_THE_LOOP)
    ] + [("", 0, chance.choice(SIGNALS), False) for _ in range(count)]
    chance.shuffle(todo)
    while todo and not found.failed:
        while todo and not found.failed:
            name, passage, number, twice = todo[-1]
            arm = partial(MOMENTS[name].arm, passage, number, twice) if name else nothing
            child = train(folder, 0 if name else 2, arm)
            if not name and not child.ended(chance.uniform(0, span)):
                os.killpg(child.pid, number)
            if child.end() == 0:
                break  # it came to its end before
            todo.pop()
            found.look(folder / "run")
            found.failed = complaint(folder, child, -signal.SIGINT if twice else CODES[number], name, twice)
        found.close(train(folder, 0), folder / "run", tensors(wanted))
    return found


def complaint(folder: Path, child: Child, code: int, name: str, twice: bool) -> str:
    """What is wrong with how a signalled process ended; nothing where all is well."""
    said = child.said.read_text()
    stopped = re.search(r"stopped at step (\d+), saved", said)
    newest = newest_checkpoint(folder / "run")[0]
    wrong = {
        f"exit code {child.code}, not {code}": child.code != code,
        "a traceback": "Traceback" in said or "Exception" in said,
        "not saved where it stopped": stopped is not None and (newest is None or newest.step != int(stopped[1])),
        "not saved": name not in {*BEFORE_THE_LOOP, ""} and not twice and stopped is None,
        "processes are left": not twice and not gone(child.pid),
    }
    return "".join(f"{what} ({name or 'at random'}): {said}" for what, true in wrong.items() if true)


def tensors(wanted: dict[str, object]) -> dict[str, object]:
    """Less the metrics: a run that is stopped has one more line of them."""
    return {name: value for name, value in wanted.items() if name != "metrics"}


def seconds_of(folder: Path) -> float:
    """How long a whole run takes."""
    began = time.monotonic()
    train(folder, 0).end()
    shutil.rmtree(folder / "run")
    return time.monotonic() - began


def import_what_is_used(folder: Path) -> None:
    """Import what a run imports on its way, so that the next ones need not."""

    def tell() -> None:
        atexit.register(lambda: (folder / "modules.json").write_text(json.dumps(list(sys.modules))))

    train(folder, 2, tell).end()
    for name in json.loads((folder / "modules.json").read_text()):
        if name not in sys.modules:
            with contextlib.suppress(ImportError):
                importlib.import_module(name)


def main(place: str, mode: str, count: str, seed: str) -> None:
    torch.set_num_threads(1)
    folder = Path(place)
    make_project(folder)
    import_what_is_used(folder)
    wanted = fingerprint(folder / "run")
    shutil.rmtree(folder / "run")
    found = MODES[mode](folder, int(count), random.Random(int(seed)), wanted)
    print(json.dumps(asdict(found)))


MODES = {
    "random": killed_at_random,
    "points": killed_at_points,
    "signals": signalled,
    "encode": encoding,
    "encodes": killed_encodes,
    "steps": stepwise_killed_encodes,
}


if __name__ == "__main__":
    main(*sys.argv[1:])
