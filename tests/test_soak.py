"""Long runs: no file stays open, and memory does not grow."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from flexvae_cli.config import load_config
from flexvae_cli.engine import events as e
from flexvae_cli.engine.loop import train
from flexvae_cli.engine.records import recorded
from flexvae_cli.engine.rundir import RunDirectory
from flexvae_cli.engine.starting import gather
from flexvae_cli.plan import make_plan

SECONDS = float(os.environ.get("FLEXVAE_SOAK_SECONDS", "300"))
WARM = 30.0  # seconds until caches and allocators have what they want
nightly = pytest.mark.skipif(os.environ.get("FLEXVAE_NIGHTLY") != "1", reason="takes minutes")
pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="reads /proc")
CONFIG = """
model = { encoder = "e.json", decoder = "d.json" }
data = { source = "photos", input = "3x16x16", validation = 0.2, workers = 0, cache = 1, resize = "none" }
schedule = { name = "constant" }
ema = { decay = 0.9 }
[train]
run_dir = "run"
max_steps = 300
batch_size = 4
accumulate = 2
log_every = 5
validate_every = 20
preview_every = 50
checkpoint_every = 10
keep_best = "psnr"
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


def open_files(process: int | str) -> int:
    return len(list(Path(f"/proc/{process}/fd").iterdir()))


def test_no_file_stays_open(project):
    seldom = ["train.checkpoint_every=40", "train.validate_every=40"]
    plan, seen = make_plan(load_config(project / "flexvae.toml", seldom)), set()
    with RunDirectory(plan.settings.train.run_dir) as run:
        for event in recorded(train(plan, gather(plan), run, resume=False), run):
            if isinstance(event, e.Advanced) and event.step > 50:
                seen.add(open_files("self"))
    assert len(seen) == 1


def slope(samples: list[tuple[float, float]]) -> float:
    """The least-squares slope of (x, y)."""
    x, y = (sum(values) / len(samples) for values in zip(*samples, strict=True))
    return sum((a - x) * (b - y) for a, b in samples) / sum((a - x) ** 2 for a, _ in samples)


def watch(process: subprocess.Popen[str], seconds: float) -> tuple[list[tuple[float, float]], list[int]]:
    """(minutes, MB) of resident memory and the number of open files, once a second, behind the warming up."""
    memory, files, began = [], [], time.monotonic()
    while process.poll() is None and (now := time.monotonic() - began) < seconds:
        if now > WARM:
            pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
            memory.append((now / 60, pages * os.sysconf("SC_PAGE_SIZE") / 1e6))
            files.append(open_files(process.pid))
        time.sleep(1)
    return memory, files


def start(project: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "flexvae_cli", *arguments]
    return subprocess.Popen(command, cwd=project, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True)


@nightly
@pytest.mark.parametrize("workers", [0, 2])
def test_a_training_of_hours_stays_as_it_is(project, workers):
    """With a kill after half of the time."""
    for _ in range(2):
        process = start(
            project, "train", "--resume", "--set", f"data.workers={workers}", "--set", "train.max_steps=100000000"
        )
        memory, files = watch(process, WARM + SECONDS / 2)
        assert process.poll() is None
        process.kill()
        process.wait()
        half = len(files) // 2
        assert slope(memory[half:]) < 1  # MB in a minute
        assert max(files[half:]) <= max(files[:half]) + 4  # batches on their way


@nightly
def test_an_encode_of_many_images_stays_as_it_is(project):
    process = start(project, "train", "--set", "train.max_steps=2")
    assert process.wait() == 0
    many = project / "many"
    many.mkdir()
    for index in range(100_000):
        os.link(project / f"photos/{index % 12}.png", many / f"{index}.png")
    process = start(project, "encode", "run", "many", "latents")
    memory, files = watch(process, 3600)
    assert process.returncode == 0
    assert max(files) <= min(files) + 16
    assert memory == [] or memory[-1][1] < memory[0][1] + 300  # the manifest, and shards that are not full
