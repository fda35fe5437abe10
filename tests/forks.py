"""A process that has imported all of it forks one `flexvae` after the other, and interrupts them: each costs a fork.

Only a program of its own may do so, since a process with threads must not fork: `harness.py`.
"""

from __future__ import annotations

import atexit
import faulthandler
import itertools
import json
import os
import select
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from flexvae_cli import main as command_line
from flexvae_cli.engine.checkpoint import read_checkpoint
from flexvae_cli.engine.data import workers
from flexvae_cli.engine.files import ORPHAN
from flexvae_cli.engine.rundir import step_directories
from flexvae_cli.errors import FlexVAEError
from flexvae_cli.signals import ending_in_order

STEPS = 30
HANGS = 120.0  # seconds after which a child counts as hung
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGUSR1: 143}
CONFIG = f"""
[model]
encoder = "e.json"
decoder = "d.json"
[data]
source = "photos"
input = "3x16x16"
resize = "none"
validation = 0.2
[optimizer]
lr = 1e-3
[schedule]
warmup_steps = 5
[ema]
decay = 0.9
[train]
run_dir = "run"
max_steps = {STEPS}
batch_size = 4
accumulate = 2
log_every = 2
validate_every = 10
preview_every = 15
checkpoint_every = 4
keep_best = "psnr"
device = "cpu"
"""


def make_project(folder: Path) -> None:
    """A config, two structures of 900 parameters, and a few small photographs."""
    (folder / "photos").mkdir(parents=True)
    (folder / "flexvae.toml").write_text(CONFIG)
    (folder / "e.json").write_text(json.dumps(["C2d_3_8_3_2_1", "GN_2_8", "SiLU", "C2d_8_4_3_2_1"]))
    (folder / "d.json").write_text(json.dumps(["C2d_2_8_3_1_1", "GN_2_8", "SiLU", "UpS_4", "C2d_8_3_3_1_1"]))
    scenes = sorted(Path(command_line.__file__).parent.glob("assets/scenery/val/*.jpg"))
    for index in range(10):
        scene = Image.open(scenes[index]).crop((32 * index, 16 * index, 32 * index + 24, 16 * index + 20))
        scene.save(folder / f"photos/{index}.png")


@dataclass
class Child:
    """A `flexvae` that runs in a process group of its own; `code` is its exit code, negative where it was killed."""

    pid: int
    said: Path
    code: int | None = None

    def ended(self, seconds: float) -> bool:
        """Whether it ends within so many seconds."""
        descriptor = os.pidfd_open(self.pid)
        over = bool(select.select([descriptor], [], [], seconds)[0])
        os.close(descriptor)
        if over:
            self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return over

    def end(self) -> int:
        """Its exit code, waited for."""
        if self.code is None and not self.ended(HANGS):
            os.killpg(self.pid, signal.SIGABRT)  # faulthandler tells where
            self.ended(HANGS)
            raise RuntimeError(f"hangs: {self.said.read_text()}")
        return self.code

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        self.end()


def start(folder: Path, *arguments: str, prepare: Callable[[], object] = lambda: None) -> Child:
    """Fork a `flexvae` with these arguments; comes back once it can take signals."""
    said = folder / "said.txt"
    ready, begun = os.pipe()
    sys.stdout.flush()
    if (pid := os.fork()) == 0:
        code = 99
        try:
            code = run(folder, said, arguments, prepare, begun)
        finally:
            os._exit(code)
    os.close(begun)
    os.read(ready, 1)
    os.close(ready)
    return Child(pid, said)


def run(folder: Path, said: Path, arguments: Sequence[str], prepare: Callable[[], object], begun: int) -> int:
    """What the child does; returns its exit code."""
    os.setpgid(0, 0)
    os.chdir(folder)
    output = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
    for standard in (1, 2):
        os.dup2(output, standard)
    faulthandler.enable()
    workers.START_METHOD = "fork"  # a fork server would import torch anew every time
    prepare()
    sys.argv = ["flexvae", *arguments]
    try:
        with ending_in_order():
            os.write(begun, b"!")
            command_line.run()
    except SystemExit as ended:
        code = int(ended.code or 0)
    except KeyboardInterrupt:
        code = 130
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # what comes from here on is too late
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def train(folder: Path, workers: int, prepare: Callable[[], object] = lambda: None) -> Child:
    """Fork a training that starts, or goes on."""
    return start(folder, "train", "--resume", "--set", f"data.workers={workers}", prepare=prepare)


def fingerprint(run: Path) -> dict[str, object]:
    """What must not depend on interruptions: the last checkpoint's tensors and description, and the metrics."""
    checkpoint = run / f"ckpt/step-{STEPS:08d}"
    files = json.loads((checkpoint / "state.json").read_text())["files"]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kept = {name: value["sha256"] for name, value in files.items()}
    return kept | {"metrics": [(line["step"], line["kind"], line["loss"]) for line in lines]}


def orphans(run: Path) -> int:
    """Half-written things that are there."""
    return sum(bool(ORPHAN.fullmatch(path.name)) for path in run.rglob("*")) if run.is_dir() else 0


@dataclass
class Findings:
    """What came of many interrupted runs."""

    kills: int = 0
    runs: int = 0
    orphans: int = 0  # seen behind kills
    left: int = 0  # of them, after the run came to its end
    invalid: int = 0  # visible checkpoints
    different: str = ""  # what differs at the end from the uninterrupted run
    failed: str = ""  # what a process said that ended by itself, and not well

    def look(self, run: Path) -> None:
        """Check what a kill left behind."""
        self.kills += 1
        self.orphans += orphans(run)
        for path in step_directories(run / "ckpt"):
            try:
                read_checkpoint(path)
            except FlexVAEError:
                self.invalid += 1

    def close(self, child: Child, run: Path, wanted: dict[str, object]) -> None:
        """Check a run that came to its end."""
        code = child.end()
        self.runs += 1
        self.left += orphans(run)
        if code:
            self.failed = f"exit code {code}: {child.said.read_text()}"
        else:
            now = fingerprint(run)
            self.different += "".join(f"{self.runs}: {name}\n" for name in wanted if now[name] != wanted[name])
        shutil.rmtree(run)


@dataclass(frozen=True)
class Moment:
    """Where in its work a process sends itself a signal: before a function is called for the n-th time."""

    owner: object
    name: str
    passages: Sequence[int]

    def arm(self, passage: int, number: int, twice: bool = False) -> None:
        """Let this process do so."""
        real, calls = getattr(self.owner, self.name), itertools.count(1)

        def sending(*arguments: object, **options: object) -> object:
            if next(calls) == passage:
                for _ in range(1 + twice):
                    os.kill(os.getpid(), number)
            return real(*arguments, **options)

        setattr(self.owner, self.name, sending)


def group_members(group: int) -> list[int]:
    """The living processes of a process group."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            found.append(int(status.parent.name))
    return found


def gone(group: int) -> bool:
    """Whether all processes of a group leave, in the time that it takes them at most."""
    deadline = time.monotonic() + HANGS
    while group_members(group):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def nothing() -> None:
    """Nothing is prepared."""
