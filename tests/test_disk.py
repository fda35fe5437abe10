"""A disk that fills up while a run goes on: the run waits, and either goes on to the same bits or ends intact."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from flexvae_cli.config import load_config
from flexvae_cli.engine import events as e
from flexvae_cli.engine.checkpoint import newest_checkpoint
from flexvae_cli.engine.events import Event, Noticed
from flexvae_cli.engine.files import ORPHAN, DiskFullError
from flexvae_cli.engine.lines import LineFile
from flexvae_cli.engine.loop import train
from flexvae_cli.engine.patience import waiting_for_room
from flexvae_cli.engine.records import recorded
from flexvae_cli.engine.room import checkpoint_bytes, require_room
from flexvae_cli.engine.rundir import RunDirectory
from flexvae_cli.engine.starting import gather
from flexvae_cli.errors import Exit
from flexvae_cli.plan import make_plan

CONFIG = """
model = { encoder = "e.json", decoder = "d.json" }
data = { source = "builtin:scenery/val", input = "3x16x16", validation = 0.2, workers = 0 }
ema = { decay = 0.9 }
schedule = { name = "constant" }
[train]
run_dir = "whole"
max_steps = 6
batch_size = 4
log_every = 2
validate_every = 4
preview_every = 4
checkpoint_every = 2
disk_full_wait = 60
device = "cpu"
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "flexvae.toml").write_text(CONFIG)
    (tmp_path / "e.json").write_text(json.dumps(["C2d_3_8_4_4", "SiLU", "C2d_8_4_1"]))
    (tmp_path / "d.json").write_text(json.dumps(["C2d_2_8_1", "SiLU", "UpS_4", "C2d_8_3_3_1_1"]))
    return tmp_path


def run(
    project: Path, *overrides: str, resume: bool = False, at: Callable[[Event], object] = lambda _: None
) -> list[Event]:
    """Train; `at` is called with every event."""
    plan, found = make_plan(load_config(project / "flexvae.toml", overrides)), list[Event]()
    with RunDirectory(plan.settings.train.run_dir, resume=resume) as held:
        for event in recorded(train(plan, gather(plan), held, resume=resume, force=True), held):
            found.append(event)
            at(event)
    return found


def state(run_dir: Path) -> tuple[int, dict[str, torch.Tensor]]:
    checkpoint, problems = newest_checkpoint(run_dir)
    assert checkpoint is not None
    assert not problems
    return checkpoint.step, {**checkpoint.weights(), **checkpoint.training()}


def same(a: Path, b: Path) -> bool:
    (one, first), (two, second) = state(a), state(b)
    return one == two and first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def metrics(run_dir: Path) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines]


# ------------------------------------------------------------------------------------------------------------ waiting


def drained(waiting: Iterator[Noticed]) -> tuple[object, list[str]]:
    """What a generator returns, and the texts of what it yields."""
    told = []
    while True:
        try:
            told.append(next(waiting).text)
        except StopIteration as end:
            return end.value, told


def failing(times: int) -> Callable[[], str]:
    left = iter(range(times))

    def write() -> str:
        if next(left, None) is not None:
            raise DiskFullError("no space left: 5.0 MB needed, 0.1 MB free", where="run/ckpt")
        return "written"

    return write


def test_it_is_tried_again_until_there_is_room_and_told_once():
    assert drained(waiting_for_room(failing(0), 0)) == ("written", [])
    made, told = drained(waiting_for_room(failing(4), 600, pause=0))
    assert made == "written"
    assert told == ["run/ckpt: no space left: 5.0 MB needed, 0.1 MB free; waiting up to 600 s for room"]


def test_it_is_given_up_at_the_end_of_the_time():
    with pytest.raises(DiskFullError):
        drained(waiting_for_room(failing(1), 0))
    with pytest.raises(DiskFullError):
        drained(waiting_for_room(failing(10**6), 0.05, pause=0.01))


def test_a_signal_ends_the_waiting_after_one_more_try():
    with pytest.raises(DiskFullError):
        drained(waiting_for_room(failing(10), 600, stopped=lambda: True))
    came = iter([False] + [True] * 10)
    assert drained(waiting_for_room(failing(1), 600, stopped=lambda: next(came)))[0] == "written"


def test_lines_are_held_back_while_the_disk_is_full(tmp_path, monkeypatch):
    lines, real = LineFile(tmp_path / "log.txt"), os.write
    lines.add("one")
    with monkeypatch.context() as patch:
        left = iter([3, 0, 0])

        def filling_up(descriptor: int, data: bytes) -> int:
            if not (room := next(left)):
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(descriptor, data[:room])

        patch.setattr(os, "write", filling_up)
        lines.add("two")
        assert lines.path.read_text() == "one\n"  # nothing of it is left half written
        with pytest.raises(DiskFullError):
            lines.flush()
    lines.add("three")
    assert lines.path.read_text() == "one\ntwo\nthree\n"


# ----------------------------------------------------------------------------------------------------------- training


class Disk:
    """Counts what is written by this process; from the `full_from`-th write on the disk is full, until it is not."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, full_from: float = float("inf")) -> None:
        self.full_from, self.writes, self.refused = full_from, 0, 0
        self.write = os.write
        monkeypatch.setattr(os, "write", self)

    def __call__(self, descriptor: int, data: bytes) -> int:
        self.writes += 1
        if self.writes >= self.full_from:
            self.refused += 1
            raise OSError(errno.ENOSPC, "No space left on device")
        return self.write(descriptor, data)

    def make_room(self, event: Event) -> None:
        if isinstance(event, Noticed) and "waiting up to 60 s for room" in event.text:
            self.full_from = float("inf")


def test_space_that_returns_after_any_write_gives_the_same_bits(project, monkeypatch, fuzz_factor):
    """From the k-th write on the disk is full, and it has room again once the run has waited."""
    monkeypatch.setattr(waiting_for_room, "__kwdefaults__", {**waiting_for_room.__kwdefaults__, "pause": 0})
    first = []
    with monkeypatch.context() as patch:
        disk = Disk(patch)
        run(project, at=lambda event: isinstance(event, e.Saved) and first.append(disk.writes))
    moments = range(first[0] + 1, disk.writes)  # what is wrong at the first checkpoint ends the run at once
    chosen = moments if fuzz_factor > 1 else [*moments[:2], *moments[2 :: len(moments) // 4]]
    waited = 0
    for k in chosen:
        with monkeypatch.context() as patch:
            disk = Disk(patch, k)
            events = run(project, f"train.run_dir={project / 'run'}", at=disk.make_room)
        waited += disk.full_from > k
        assert disk.refused
        assert isinstance(events[-1], e.Finished)
        assert same(project / "run", project / "whole"), k
        assert metrics(project / "run") == metrics(project / "whole")
        assert not [p for p in (project / "run").rglob("*") if ORPHAN.fullmatch(p.name)]
        shutil.rmtree(project / "run")
    assert waited > len(chosen) / 2


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = shutil.which("mount")
    if os.geteuid() or not mount:
        pytest.skip("mounting a tmpfs takes root")
    if subprocess.run([mount, "-t", "tmpfs", "-o", "size=8m", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("this system does not let us mount a tmpfs")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


def fill(disk: Path, leave: int) -> Path:
    """Take all but so many bytes of a disk."""
    ballast = disk / "ballast"
    ballast.write_bytes(bytes(shutil.disk_usage(disk).free - leave))
    return ballast


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard's own thread
def test_a_disk_that_is_really_full(project, small_disk, flexvae, monkeypatch):
    run(project)
    monkeypatch.chdir(project)
    arguments = ["train", "--resume", "--set", f"train.run_dir={small_disk / 'run'}"]
    assert flexvae(*arguments, "--set", "train.max_steps=4").exit_code == 0
    kept = state(small_disk / "run")
    fill(small_disk, leave=8192)
    # it is refused at once, unless it is forced
    ended = flexvae(*arguments)
    assert ended.exit_code == Exit.RESOURCES
    assert "that is 1 checkpoint; make room" in ended.stderr
    # nobody makes room
    ended = flexvae(*arguments, "--force", "--set", "train.disk_full_wait=0.1")
    assert ended.exit_code == Exit.RESOURCES
    assert "waiting up to 0.1 s for room" in ended.stderr
    error = next(line for line in ended.stderr.splitlines() if line.startswith("error: "))
    assert "step-00000006: no space left: " in error
    assert "0.0 MB needed, 0.0 MB free" in error
    assert "Traceback" not in ended.stderr
    assert state(small_disk / "run")[0] == kept[0] == 4
    assert not [p for p in (small_disk / "run").rglob("*") if ORPHAN.fullmatch(p.name)]

    # somebody does
    def make_room(event: Event) -> None:
        if isinstance(event, Noticed) and "waiting up to 60 s for room" in event.text:
            (small_disk / "ballast").unlink()

    monkeypatch.setattr(waiting_for_room, "__kwdefaults__", {**waiting_for_room.__kwdefaults__, "pause": 0.1})
    run(project, f"train.run_dir={small_disk / 'run'}", resume=True, at=make_room)
    assert not (small_disk / "ballast").exists()
    assert same(small_disk / "run", project / "whole")
    assert [step for step, _ in metrics(small_disk / "run")] == [step for step, _ in metrics(project / "whole")]


# ---------------------------------------------------------------------------------------------------------- preflight


def test_room_for_all_checkpoints_is_asked_for_before_the_first(small_disk):
    size = checkpoint_bytes(1_000_000, 900_000, mean=True)
    assert size == 3_800_000
    with pytest.raises(DiskFullError, match=r"no space left: 11.4 MB needed, 8.4 MB free") as caught:
        require_room(small_disk / "run", size, keep=2)
    assert caught.value.code == Exit.RESOURCES
    assert "that is 3 checkpoints" in str(caught.value)
    assert "--force" in str(caught.value)
    require_room(small_disk / "run", size, keep=2, there=1)
    require_room(small_disk / "run", size, keep=2, there=5)
    with pytest.raises(DiskFullError, match=r"that is 1 checkpoint;"):
        require_room(small_disk / "run", 10**7, keep=2, there=5)
