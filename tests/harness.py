"""Trainings that cost a fork each: a process that has imported all of it forks one `flexvae` after the other.

The tests of kills and signals start this as a program of its own, since a process with threads must not fork. It prints
a JSON object of what it found: python harness.py FOLDER random|points|signals|encode|encodes|steps COUNT SEED
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import importlib
import itertools
import json
import os
import random
import re
import select
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from PIL import Image

from flexvae_cli import main as command_line
from flexvae_cli.engine import checkpoint, files, loop, starting, validation
from flexvae_cli.engine.checkpoint import newest_checkpoint, read_checkpoint
from flexvae_cli.engine.data import dataset, sources, workers
from flexvae_cli.engine.data import whole as whole_files
from flexvae_cli.engine.files import CRASH_POINTS, ORPHAN
from flexvae_cli.engine.latents import journal, writing
from flexvae_cli.engine.latents.encoding import Encoder
from flexvae_cli.engine.model import Model
from flexvae_cli.engine.naming import OutputFolder
from flexvae_cli.engine.optimizer import Optimization
from flexvae_cli.engine.rundir import step_directories
from flexvae_cli.engine.vae import VAE
from flexvae_cli.errors import FlexVAEError
from flexvae_cli.signals import ending_in_order

STEPS = 30
HANGS = 120.0  # seconds after which a child counts as hung
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
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
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGUSR1: 143}


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
            arm = partial(MOMENTS[name].arm, passage, number, twice) if name else _nothing
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


def encoding(folder: Path, count: int, chance: random.Random, wanted: dict[str, object]) -> Findings:
    """Signal encodes, `count` times for each signal; then let one come to its end."""
    found = Findings()
    train(folder, 0).end()

    def encode(prepare: Callable[[], object]) -> Child:
        return start(folder, "encode", "run", "photos", "latents", "--overwrite", "--workers=0", prepare=prepare)

    encode(_nothing).end()
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
    found.failed = "" if encode(_nothing).end() == 0 else "cannot go on"
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
            prepare = partial(os.environ.update, FLEXVAE_CRASH_AT=at) if chance.random() < 0.7 else _nothing
            child = encoded(folder, number, "latents", prepare)
            if prepare is _nothing and not child.ended(chance.uniform(0, span)):
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


def gone(group: int) -> bool:
    """Whether all processes of a group leave, in the time that it takes them at most."""
    deadline = time.monotonic() + HANGS
    while group_members(group):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def tensors(wanted: dict[str, object]) -> dict[str, object]:
    """Less the metrics: a run that is stopped has one more line of them."""
    return {name: value for name, value in wanted.items() if name != "metrics"}


def _nothing() -> None:
    """Nothing is prepared."""


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
