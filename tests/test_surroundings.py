"""A machine that takes things away from a run: clear words, the right exit code, nothing damaged."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from flexvae_cli.config import load_config
from flexvae_cli.engine import events as e
from flexvae_cli.engine.checkpoint import newest_checkpoint
from flexvae_cli.engine.events import Event
from flexvae_cli.engine.loop import train
from flexvae_cli.engine.records import recorded
from flexvae_cli.engine.rundir import RunDirectory
from flexvae_cli.engine.starting import gather
from flexvae_cli.errors import DataError, Exit, ResourceError
from flexvae_cli.plan import make_plan

CONFIG = """
model = { encoder = "e.json", decoder = "d.json" }
data = { source = "photos", input = "3x16x16", validation = 0, workers = 0, cache = 1, resize = "none" }
schedule = { name = "constant" }
[train]
run_dir = "run"
max_steps = 12
batch_size = 4
checkpoint_every = 4
preview_every = 0
device = "cpu"
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "flexvae.toml").write_text(CONFIG)
    (tmp_path / "e.json").write_text(json.dumps(["C2d_3_8_4_4", "SiLU", "C2d_8_4_1"]))
    (tmp_path / "d.json").write_text(json.dumps(["C2d_2_8_1", "SiLU", "UpS_4", "C2d_8_3_3_1_1"]))
    (tmp_path / "photos").mkdir()
    for index in range(12):
        Image.effect_noise((24, 20), 20 * index + 1).convert("RGB").save(tmp_path / f"photos/{index}.png")
    return tmp_path


def run(project: Path, *overrides: str, resume: bool = False, at: Callable[[Event], object]) -> list[Event]:
    """Train; `at` is called with every event."""
    plan, found = make_plan(load_config(project / "flexvae.toml", overrides)), list[Event]()
    with RunDirectory(plan.settings.train.run_dir, resume=resume) as held:
        for event in recorded(train(plan, gather(plan), held, resume=resume), held):
            found.append(event)
            at(event)
    return found


def behind(step: int, do: Callable[[], object]) -> Callable[[Event], object]:
    """Do something behind a step."""
    return lambda event: do() if isinstance(event, e.Advanced) and event.step == step else None


def newest(run_dir: Path) -> int:
    checkpoint, problems = newest_checkpoint(run_dir)
    assert checkpoint is not None
    assert not problems
    return checkpoint.step


def test_images_that_vanish_are_told_and_replaced(project):
    gone = [project / f"photos/{index}.png" for index in (3, 5, 8)]
    events = run(project, at=behind(1, lambda: [path.unlink() for path in gone]))
    assert events[-1].step == 12
    bad = [event for event in events if isinstance(event, e.BadFileMet)]
    assert {event.name for event in bad} == {path.name for path in gone}
    assert all("cannot be opened: no such file" in event.reason for event in bad)


def test_a_folder_of_images_that_vanishes_ends_the_run(project):
    with pytest.raises(DataError, match="100 images in a row cannot be read") as caught:
        run(project, at=behind(6, lambda: (project / "photos").rename(project / "elsewhere")))
    assert caught.value.code == Exit.DATA
    assert caught.value.problems[-1].hint == "step 6 is saved, and --resume goes on from there"
    assert newest(project / "run") == 6
    (project / "elsewhere").rename(project / "photos")
    assert run(project, resume=True, at=lambda _: None)[-1].step == 12


def test_a_validation_whose_images_vanish_is_made_up_for(project):
    shutil.copytree(project / "photos", project / "held-out")
    sets = (f"data.validation={project / 'held-out'}", "train.validate_every=6", "data.max_bad=1")
    run(project, f"train.run_dir={project / 'whole'}", *sets, at=lambda _: None)
    away = behind(6, lambda: (project / "held-out").rename(project / "elsewhere"))
    with pytest.raises(DataError, match="none of the validation images can be read any more\nhint: step 6 is saved"):
        run(project, *sets, at=away)
    assert newest(project / "run") == 6
    assert len((project / "run/bad_files.jsonl").read_text().splitlines()) == len(list((project / "photos").iterdir()))
    (project / "elsewhere").rename(project / "held-out")
    events = run(project, *sets, resume=True, at=lambda _: None)
    assert [event.step for event in events if isinstance(event, e.Validated)] == [6, 12]
    whole, resumed = (json.loads((project / name / "ckpt/step-00000012/state.json").read_text())["files"]
                      for name in ("whole", "run"))  # fmt: skip
    assert whole["training.safetensors"] == resumed["training.safetensors"]


def test_what_keeps_the_checkpoint_from_being_saved_as_well_is_told(project, monkeypatch):
    def read_only(path: Path, *options: int) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    def spoil() -> None:
        (project / "photos").rename(project / "elsewhere")
        monkeypatch.setattr(os, "mkdir", read_only)

    with pytest.raises(DataError) as caught:
        run(project, at=behind(6, spoil))
    told = str(caught.value)
    assert "100 images in a row cannot be read" in told
    assert "step-00000006: cannot be written: Read-only file system" in told
    assert "--resume" not in told
    assert newest(project / "run") == 4


def test_a_read_only_run_directory_is_refused_at_once(project, flexvae, monkeypatch):
    monkeypatch.chdir(project)
    (project / "disk").mkdir()
    mount = shutil.which("mount")
    if os.geteuid():
        (project / "disk").chmod(0o555)
    elif not mount or subprocess.run([mount, "-t", "tmpfs", "-o", "ro", "tmpfs", project / "disk"]).returncode:
        pytest.skip("nothing is read-only to root, unless it can be mounted so")
    try:
        ended = flexvae("train", "--set", f"train.run_dir={project / 'disk/run'}")
    finally:
        if not os.geteuid():
            subprocess.run(["umount", project / "disk"], check=True)
    assert ended.exit_code == Exit.RESOURCES
    assert re.match(r"error: \S+disk/run: cannot be written: (Read-only|Permission)", ended.stderr)


def test_a_disk_that_becomes_read_only_leaves_the_last_checkpoint(project, monkeypatch):
    """As the system does with one that fails."""
    real = os.mkdir

    def read_only(path: Path, *options: int) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    with pytest.raises(ResourceError, match="step-00000008: cannot be written: Read-only file system") as caught:
        run(project, at=behind(6, lambda: monkeypatch.setattr(os, "mkdir", read_only)))
    assert caught.value.code == Exit.RESOURCES
    assert newest(project / "run") == 4
    monkeypatch.setattr(os, "mkdir", real)
    assert run(project, resume=True, at=lambda _: None)[-1].step == 12


def test_a_clock_that_jumps_changes_nothing(project, monkeypatch):
    real = time.time
    run(project, f"train.run_dir={project / 'whole'}", at=lambda _: None)
    back = behind(6, lambda: monkeypatch.setattr(time, "time", lambda: real() - 3e8))
    assert run(project, "train.checkpoint_minutes=60", at=back)[-1].step == 12
    whole, jumped = (newest_checkpoint(project / name)[0] for name in ("whole", "run"))
    assert whole is not None
    assert jumped is not None
    weights = whole.weights()
    assert all(torch.equal(value, weights[name]) for name, value in jumped.weights().items())


def started(project: Path, before: str, *overrides: str) -> tuple[int, str]:
    """Exit code and stderr of a training that a shell prepares for."""
    sets = " ".join(f"--set {each}" for each in overrides)
    command = f"{before} && exec {sys.executable} -m flexvae_cli train {sets}"
    done = subprocess.run(["sh", "-c", command], cwd=project, capture_output=True, text=True, timeout=240, check=False)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr


def test_few_open_files_are_enough(project):
    code, said = started(project, "ulimit -n 64", "data.workers=2")
    assert code == Exit.DONE, said
    assert newest(project / "run") == 12


def test_too_few_open_files_are_told(project):
    code, said = started(project, "ulimit -n 24", "data.workers=2")
    assert code == Exit.RESOURCES, said
    assert "open files" in said
    assert f"step {newest(project / 'run')} is saved" in said


def test_too_little_memory_is_told(project):
    """Address space that is enough for torch, and not for the batch."""
    code, said = started(project, "ulimit -v 4000000", "data.source=builtin:scenery", "data.input=3x256x256",
                         "train.batch_size=60")  # fmt: skip
    assert code == Exit.RESOURCES, said
    assert "error: out of memory: " in said


def test_too_little_shared_memory_is_told(project):
    command = ["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/dev/shm"]
    if os.geteuid() or not shutil.which("unshare") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("a /dev/shm of its own takes root")
    lines = ["mount -t tmpfs -o size=64k tmpfs /dev/shm", f"exec {sys.executable} -m flexvae_cli train"]
    code, said = started(
        project, f"exec unshare --mount sh -c '{lines[0]} && {lines[1]} --set data.workers=2 --set data.input=3x20x24 "
        "--set train.batch_size=12'; true"
    )  # fmt: skip
    assert code == Exit.RESOURCES, said
    assert "shared memory" in said
    assert "try fewer data.workers" in said
