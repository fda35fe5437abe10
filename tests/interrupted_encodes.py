"""Encodes that are signalled or killed, and come to their end all the same; for `harness.py`."""

from __future__ import annotations

import atexit
import itertools
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from forks import CODES, SIGNALS, Child, Findings, Moment, gone, nothing, start, train

from flexvae_cli.engine import files
from flexvae_cli.engine.data import whole as whole_files
from flexvae_cli.engine.latents import journal, writing
from flexvae_cli.engine.latents.encoding import Encoder
from flexvae_cli.engine.model import Model
from flexvae_cli.engine.naming import OutputFolder


def encoding(folder: Path, count: int, chance: random.Random, wanted: dict[str, object]) -> Findings:
    """Signal encodes, `count` times for each signal; then let one come to its end."""
    found = Findings()
    train(folder, 0).end()

    def encode(prepare: Callable[[], object]) -> Child:
        return start(folder, "encode", "run", "photos", "latents", "--overwrite", "--workers=0", prepare=prepare)

    encode(nothing).end()
    whole = contents(folder / "latents")
    shutil.rmtree(folder / "latents")
    for number in [number for number in SIGNALS for _ in range(count)]:
        owner, name = chance.choice([(Model, "encoded"), (whole_files, "read_picture"), (OutputFolder, "write")])
        child = encode(partial(Moment(owner, name, []).arm, 1, number))
        child.end()
        found.kills += 1
        said = child.said.read_text()
        if child.code != CODES[number] or "Traceback" in said or not gone(child.pid):
            found.failed = f"exit code {child.code} of {number} at {name}: {said}"
            return found
    found.failed = "" if encode(nothing).end() == 0 else "cannot go on"
    found.different = "the latents\n" * (contents(folder / "latents") != whole)
    return found


ENCODES = (  # every layout, small units, a type with an error, a draw, flips
    ("--shard-size=2", "--flips"),
    ("--shard-size=3", "--format=wds", "--posterior=sample", "--dtype=fp16"),
    ("--shard-size=4", "--format=files", "--latents=normalized"),
    ("--shard-size=1000", "--dtype=int8"),
    ("--shard-size=3", "--format=npy"),
)


def killed_encodes(folder: Path, count: int, chance: random.Random, wanted: dict[str, object]) -> Findings:
    """Kill encodes `count` times, at random writes and at random moments, and let each of them come to its end."""
    found = Findings()
    prepare_encodes(folder)
    for number in range(len(ENCODES)):
        began = time.monotonic()
        encoded(folder, number, f"whole{number}").end()
        span = time.monotonic() - began
        while found.kills < count * (number + 1) // len(ENCODES) and not found.failed:
            at = f"{chance.choice(('file.write', 'file.written', 'file.fsync'))}:{chance.randint(1, 16)}"
            prepare = partial(os.environ.update, FLEXVAE_CRASH_AT=at) if chance.random() < 0.7 else nothing
            child = encoded(folder, number, "latents", prepare)
            if prepare is nothing and not child.ended(chance.uniform(0, span)):
                child.kill()
            if child.end() == -signal.SIGKILL:
                look_at_encode(found, folder, number)
            else:
                close_encode(found, folder, number)
        close_encode(found, folder, number)
    return found


TURNS = (  # of an encode of six shards, beside each step of each write
    Moment(writing, "measured", [1]),  # before anything is written
    Moment(Encoder, "encode", [1, 4]),
    Moment(Path, "replace", [1, 2, 4, 7, 8]),  # the journal, the first and third shard, bad_files.jsonl, the manifest
    Moment(journal.Journal, "add", [1, 3]),  # a shard has its name, and no line in the journal
    Moment(writing.Encode, "publish", [1]),  # all but the manifest
    Moment(writing, "close_journals", [1]),  # the manifest is there, and the journal as well
    Moment(os, "rmdir", [1]),  # the folder of the journal is empty
)
PIECE = 256  # bytes of a write, so that shards, journals and manifests are torn


def stepwise_killed_encodes(folder: Path, count: int, chance: random.Random, wanted: dict[str, object]) -> Findings:
    """Kill encodes into shards `count` times, at every turn and at steps spread over all their writes; then those into
    each of the other layouts, a fifth as often; and let each of them come to its end."""
    found = Findings()
    prepare_encodes(folder)
    for number in (0, 1, 2, 4):
        encoded(folder, number, f"whole{number}", partial(count_steps, folder)).end()
        steps = int((folder / "steps").read_text())
        arms = [partial(moment.arm, n, signal.SIGKILL) for moment in TURNS for n in moment.passages] * (number == 0)
        rest = (count if number == 0 else count // 5) - len(arms)
        arms += [partial(kill_at_step, round((at + chance.random()) * steps / rest) or 1) for at in range(rest)]
        for arm in arms:
            child = encoded(folder, number, "latents", arm)
            if child.end() != -signal.SIGKILL:
                found.failed = f"was not killed: {arm}, {steps} steps: {child.said.read_text()}"
            if found.failed:
                return found
            look_at_encode(found, folder, number)
            close_encode(found, folder, number)
    return found


def count_steps(folder: Path) -> None:
    """Let this process write little at a time, and tell in the end how many steps its writes had."""
    files.CHUNK, real, steps = PIECE, files.crash_point, itertools.count()

    def counting(name: str) -> None:
        next(steps)
        real(name)

    files.crash_point = counting
    atexit.register(lambda: (folder / "steps").write_text(str(next(steps))))


def kill_at_step(step: int) -> None:
    """Let this process write little at a time, and kill itself at the n-th step."""
    files.CHUNK = PIECE
    Moment(files, "crash_point", [step]).arm(step, signal.SIGKILL)


def prepare_encodes(folder: Path) -> None:
    """A model, and an image that is damaged behind its header."""
    train(folder, 0).end()
    cut = (folder / "photos/0.png").read_bytes()
    (folder / "photos/damaged.png").write_bytes(cut[: len(cut) // 2])


def look_at_encode(found: Findings, folder: Path, number: int) -> None:
    """Check what a kill left behind: a manifest stands for all the rest."""
    found.kills += 1
    left = {name: data for name, data in contents(folder / "latents").items() if name[0] != "."}
    found.invalid += "manifest.json" in left and left != contents(folder / f"whole{number}")


def encoded(folder: Path, number: int, output: str, prepare: Callable[[], object] = lambda: None) -> Child:
    """Fork an encode that starts, or goes on."""
    return start(folder, "encode", "run", "photos", output, "--workers=0", *ENCODES[number], prepare=prepare)


def close_encode(found: Findings, folder: Path, number: int) -> None:
    """Let an encode come to its end, compare it with one that was never killed, and clear it away."""
    child = encoded(folder, number, "latents")
    found.failed = "" if child.end() == 0 else f"{ENCODES[number]}: {child.said.read_text()}"
    same = contents(folder / "latents") == contents(folder / f"whole{number}")
    found.different = found.different if same else f"{ENCODES[number]}"
    found.runs += 1
    shutil.rmtree(folder / "latents")


def contents(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
