"""One run directory, one process, one metrics file."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from flexvae_cli import __version__
from flexvae_cli.engine.files import DiskFullError
from flexvae_cli.engine.rundir import RunDirectory, step_directories
from flexvae_cli.errors import FlexVAEError, ResourceError, UsageError

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
STARTS = 500 if os.environ.get("FLEXVAE_NIGHTLY") else 50


def fork(work) -> int:
    """Runs `work` in a child, whose exit status is that of the error it ends with."""
    if (child := os.fork()) == 0:
        code = 99
        try:
            work()
            code = 0
        except FlexVAEError as error:
            code = int(error.code)
        finally:
            os._exit(code)
    return child


def exit_code(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def wait_for(path: Path) -> str:
    while not path.exists() or not path.read_text():
        time.sleep(0.005)
    return path.read_text()


def test_a_new_run_has_its_directories(tmp_path):
    with RunDirectory(tmp_path / "runs" / "x") as run:
        run.write_config({"train": {"lr": 1e-4}})
        assert run.checkpoints.is_dir()
        assert run.previews.is_dir()
    assert json.loads(run.config.read_text()) == {"flexvae": __version__, "settings": {"train": {"lr": 1e-4}}}


def test_a_second_user_is_refused_with_the_name_of_the_first(tmp_path):
    in_use = pytest.raises(ResourceError, match=rf"in use by process {os.getpid()} on .+ since 20")
    with RunDirectory(tmp_path), in_use:
        RunDirectory(tmp_path, resume=True).__enter__()
    with RunDirectory(tmp_path, resume=True):
        assert (tmp_path / ".lock").read_text()


def test_of_many_simultaneous_starts_one_wins(tmp_path):
    starting, release, said = os.pipe(), os.pipe(), tmp_path / "said"
    said.mkdir()

    def start() -> None:
        os.close(starting[1])
        os.close(release[1])
        os.read(starting[0], 1)
        try:
            with RunDirectory(tmp_path / "run"):
                (said / "winner").write_text(str(os.getpid()))
                os.read(release[0], 1)
        except ResourceError as error:
            (said / f"loser-{os.getpid()}").write_text(str(error))
            raise

    children = {fork(start) for _ in range(STARTS)}
    os.close(starting[1])  # all of them go
    losers = set()
    while len(losers) < STARTS - 1:
        child, status = os.wait()
        losers.add(child)
        assert os.waitstatus_to_exitcode(status) == 5
    (winner,) = children - losers
    os.close(release[1])
    assert exit_code(winner) == 0
    assert (said / "winner").read_text() == str(winner)
    told = rf"in use by process {winner} on \S+ since 20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d"
    assert all(re.search(told, p.read_text()) for p in said.glob("loser-*"))
    os.close(starting[0])
    os.close(release[0])


def test_the_lock_of_a_killed_process_is_free_though_its_workers_live(tmp_path):
    worker_note = tmp_path / "worker"

    def train() -> None:
        with RunDirectory(tmp_path / "run"):
            worker = fork(lambda: time.sleep(60))
            worker_note.write_text(str(worker))
            time.sleep(60)

    child = fork(train)
    worker = int(wait_for(worker_note))
    with pytest.raises(ResourceError, match=f"process {child} "):
        RunDirectory(tmp_path / "run", resume=True).__enter__()
    os.kill(child, signal.SIGKILL)
    assert exit_code(child) == -9
    try:
        with RunDirectory(tmp_path / "run", resume=True):
            os.kill(worker, 0)  # it is still there
    finally:
        os.kill(worker, signal.SIGKILL)


def test_a_forked_child_that_leaves_the_block_does_not_free_the_lock(tmp_path):
    with RunDirectory(tmp_path) as run:
        assert exit_code(fork(lambda: run.__exit__())) == 0
        with pytest.raises(ResourceError, match=f"process {os.getpid()} "):
            RunDirectory(tmp_path, resume=True).__enter__()


@pytest.mark.parametrize(
    ("steps", "state"), [([], "that has no checkpoint yet"), ([5], "at step 5"), ([90, 500], "at step 500")]
)
def test_a_new_run_refuses_the_place_of_another(tmp_path, steps, state):
    with RunDirectory(tmp_path) as run:
        run.write_config({})
        for step in steps:
            (run.checkpoints / f"step-{step:08d}").mkdir()
    with pytest.raises(UsageError, match=f"already holds a run {state}") as caught:
        RunDirectory(tmp_path).__enter__()
    assert "--resume" in str(caught.value)
    with RunDirectory(tmp_path, resume=True):  # the refusal has freed the lock
        assert [int(p.name[5:]) for p in step_directories(run.checkpoints)] == sorted(steps, reverse=True)


@pytest.mark.parametrize("resume", [True, False])
@pytest.mark.parametrize(
    "theirs",
    [
        {"cat.jpg": "cat"},
        {"config.json": '{"model_type": "bert"}', ".tmp-1-5": "draft", "weights.bin": ""},
        {"config.json": "{", "ckpt/best.pt": "theirs"},
        {"config.json": '{"flexvae": "1"}'},
        {"ckpt/step-00000005/theirs.pt": "", "ckpt/.del-1-x": ""},
        {".lock": "", "notes.txt": ""},
        {".lock": '{"pid": 1}', ".tmp-1-5": ""},
        {".lock": "theirs"},
        {"log.txt": "", "previews/cat.png": ""},
    ],
    ids=lambda theirs: " ".join(theirs),
)
def test_a_directory_of_something_else_is_left_alone(tmp_path, resume, theirs):
    for name, text in theirs.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    before = set(tmp_path.rglob("*"))
    with pytest.raises(UsageError, match=r"is not empty and holds no run \(it has '"):
        RunDirectory(tmp_path, resume=resume).__enter__()
    assert set(tmp_path.rglob("*")) == before
    assert {name: (tmp_path / name).read_text() for name in theirs} == theirs


@pytest.mark.parametrize("kept", [".lock", "config.json", "ckpt"])
def test_a_run_is_known_by_anything_that_only_a_run_has(tmp_path, kept):
    with RunDirectory(tmp_path) as run:
        run.write_config({})
        (run.checkpoints / "step-00000005").mkdir()
        (run.checkpoints / "step-00000005/state.json").write_text("{}")
    shutil.rmtree(run.previews)
    for name in {".lock", "config.json", "ckpt"} - {kept}:
        shutil.rmtree(tmp_path / name) if name == "ckpt" else (tmp_path / name).unlink()
    (tmp_path / "notes.txt").write_text("mine")
    with RunDirectory(tmp_path, resume=True):
        pass
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_start_that_was_killed_at_once_can_be_repeated(tmp_path):
    (tmp_path / ".lock").write_text("")
    with RunDirectory(tmp_path):
        pass


def test_a_start_that_failed_before_it_had_a_config_can_be_repeated(tmp_path):
    with RunDirectory(tmp_path) as run:
        run.append_log("starting")
    with RunDirectory(tmp_path) as run:
        assert run.log.read_text() == "starting\n"


def test_a_lock_that_is_free_names_no_one(tmp_path):
    with RunDirectory(tmp_path):
        assert str(os.getpid()) in (tmp_path / ".lock").read_text()
    assert json.loads((tmp_path / ".lock").read_text()) == {"flexvae": __version__}


def test_entering_removes_orphans(tmp_path):
    with RunDirectory(tmp_path) as run:
        run.write_config({})
    (tmp_path / ".tmp-1-5").mkdir()
    (tmp_path / ".tmp-mine").mkdir()
    (run.checkpoints / ".del-1-step-00000001").mkdir()
    (run.previews / ".tmp-1-step-00000500.png").write_bytes(b"half")
    with RunDirectory(tmp_path, resume=True):
        assert [p.name for p in [*tmp_path.rglob(".tmp-*"), *tmp_path.rglob(".del-*")]] == [".tmp-mine"]


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("ckpt", lambda _: None),
        ("previews", lambda _: None),
        (".lock", lambda _: None),
        ("metrics.jsonl", lambda run: run.append_metrics({"step": 1})),
        ("log.txt", lambda run: run.append_log("a line")),
        ("bad_files.jsonl", lambda run: run.append_bad_file("a.png", "is broken")),
    ],
)
def test_nothing_is_written_through_a_link(tmp_path, name, write):
    outside = tmp_path / "outside"
    outside.mkdir()
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text('{"flexvae": "0", "settings": {}}')
    (run / name).symlink_to(outside / "new" if "." in name else outside)
    with pytest.raises((UsageError, ResourceError)), RunDirectory(run, resume=True) as held:
        write(held)
    assert not list(outside.iterdir())


def test_metrics_are_rewound_to_the_checkpoint(tmp_path):
    with RunDirectory(tmp_path) as run:
        assert run.metrics_offset() == 0
        run.append_metrics({"step": 1, "loss": 0.5})
        run.append_metrics({"step": 2, "loss": float("nan")})
        offset = run.metrics_offset()
        run.append_metrics({"step": 3, "loss": 0.25})
        run.rewind_metrics(offset)
        run.append_metrics({"step": 3, "loss": 0.125})
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    assert lines == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": None}, {"step": 3, "loss": 0.125}]


@pytest.mark.parametrize(
    ("content", "offset", "kept"),
    [("a\nb\n", 4, "a\nb\n"), ("a\nb\nhalf", 100, "a\nb\n"), ("a\nbc\n", 4, "a\n"), ("half", 100, ""), ("a\n", 0, "")],
)
def test_rewinding_keeps_whole_lines_and_adds_none(tmp_path, content, offset, kept):
    with RunDirectory(tmp_path) as run:
        run.metrics.write_text(content)
        run.rewind_metrics(offset)
        assert run.metrics.read_text() == kept


@contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """The system refuses to let a file grow beyond `size`: the error of a full disk, without one."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    "write",
    [
        lambda run: run.write_preview("step-00000001.png", b"picture"),
        lambda run: run.write_config({}),
    ],
    ids=["preview", "config"],
)
def test_a_full_disk_is_told_and_leaves_nothing_half_written(tmp_path, write):
    with RunDirectory(tmp_path) as run:
        before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
        with files_no_larger_than(3), pytest.raises(DiskFullError, match="no space left"):
            write(run)
        after = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file() and p.stat().st_size}
    assert after == before


def test_lines_wait_for_room_and_a_checkpoint_does_not_go_without_its_metrics(tmp_path):
    with RunDirectory(tmp_path) as run:
        with files_no_larger_than(3):
            run.append_metrics({"step": 2})
            run.append_log("a line")
            run.append_bad_file("a.png", "is broken")
            with pytest.raises(DiskFullError, match=r"metrics.jsonl: no space left"):
                run.metrics_offset()
        assert run.metrics_offset() == len('{"step": 2}\n')
        run.write_config({})
    assert run.metrics.read_text() == '{"step": 2}\n'
    assert run.log.read_text() == "a line\n"
    assert json.loads(run.bad_files.read_text()) == {"name": "a.png", "reason": "is broken"}


def test_log_and_bad_files_hold_names_that_are_no_text(tmp_path):
    name = os.fsdecode(b"\xff.png")
    with RunDirectory(tmp_path) as run:
        run.append_log(f"skipped: {name}")
        run.append_bad_file(name, "is broken")
        assert run.log.read_text() == "skipped: \\udcff.png\n"
        assert json.loads(run.bad_files.read_text()) == {"name": name, "reason": "is broken"}


def test_a_preview_takes_the_place_of_an_earlier_one(tmp_path):
    with RunDirectory(tmp_path) as run:
        run.write_preview("step-00000001.png", b"old")
        assert run.write_preview("step-00000001.png", b"new").read_bytes() == b"new"
        assert [p.name for p in run.previews.iterdir()] == ["step-00000001.png"]
