"""Two processes train on pictures of many shapes: every step of one shape in both, whatever stops one of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from processes import ranks

from flexvae_cli.engine.checkpoint import Checkpoint, newest_checkpoint
from flexvae_cli.errors import Exit

CONFIG = """
[model]
encoder = "e.json"
decoder = "d.json"
[data]
source = "photos"
input = "3x24x24"
max_aspect_ratio = 2.0
validation = "held-out"
workers = 0
[optimizer]
lr = 3e-3
[ema]
decay = 0.9
[train]
run_dir = "run"
max_steps = 30
batch_size = 3
log_every = 1
validate_every = 10
preview_every = 0
device = "cpu"
[[phase]]
start = 24
input = "3x32x32"
"""
SIZES = [(36, 36), (40, 30), (64, 40), (36, 66), (90, 36), (34, 50), (40, 36), (36, 50)]  # height, width
SOUND, DAMAGED, HELD_OUT = 24, 14, 3
ALLOWED = ("--set", "data.max_bad=1")
TRAIN = """
import sys
from flexvae_cli import main
from flexvae_cli.engine import learner
take = learner.Learner.step
def told(self, step, micro_batches, samples):
    print("step", step, *(list(x.shape) for x in micro_batches), file=sys.stderr)
    return take(self, step, micro_batches, samples)
learner.Learner.step = told
"""
LOSE = """
from flexvae_cli.engine.data.dataset import TrainingImages
from flexvae_cli.errors import DataError
read = TrainingImages.__getitem__
gone = DataError("the disk is gone", hint="buy another")
TrainingImages.__getitem__ = lambda self, at: gone if at[0] else read(self, at)
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of eight shapes, more than ten of them damaged behind their headers."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "flexvae.toml").write_text(CONFIG)
    (folder / "e.json").write_text(json.dumps(["C2d_3_8_4_4", "SiLU", "C2d_8_4_1"]))
    (folder / "d.json").write_text(json.dumps(["C2d_2_8_1", "SiLU", "UpS_4", "C2d_8_3_3_1_1"]))
    for name, count in (("photos", SOUND + DAMAGED), ("held-out", HELD_OUT)):
        (folder / name).mkdir()
        for number in range(count):
            height, width = SIZES[number % len(SIZES)]
            path = folder / name / f"{number}.png"
            Image.effect_noise((width, height), 5 * number + 9).convert("RGB").save(path)
            if number >= SOUND:
                path.write_bytes(path.read_bytes()[:-300])
    return folder


def train(project: Path, *more: str, second: str = "", code: int = 0) -> tuple[str, str]:
    """Train in two processes, of which the second runs some code before; returns what they said."""
    programs = [f"{TRAIN}{extra}\nsys.argv = {['flexvae', 'train', *more]}\nmain.run()" for extra in ("", second)]
    with ranks(*(["-c", program] for program in programs), folder=project) as started:
        first, other = (process.communicate(timeout=120)[1] for process in started)
        assert [process.returncode for process in started] == [code, code], first + other
    return first, other


def newest(run: Path) -> Checkpoint:
    checkpoint, damaged = newest_checkpoint(run)
    assert checkpoint is not None
    assert not damaged
    return checkpoint


def steps(said: str) -> dict[int, list[list[int]]]:
    """The shapes of the micro-batches of each step that a process took."""
    lines = [line.split(" ", 2)[1:] for line in said.splitlines() if line.startswith("step ") and "[" in line]
    return {int(step): json.loads(f"[{shapes.replace('] [', '], [')}]") for step, shapes in lines}


def metrics(run: Path) -> list[dict[str, Any]]:
    """Without what the machine has a part in."""
    apart = {"images_per_second", "data_wait", "memory_bytes", "time"}
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in apart} for row in rows]


def test_two_processes_share_steps_of_one_shape_whatever_stops_them(
    project: Path, flexvae: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They do what one does in two parts, though there are too many bad files first, and then one loses its samples."""
    monkeypatch.chdir(project)
    run, shapes = project / "run", [dict[int, Any](), dict[int, Any]()]

    def said(*more: str, **how: Any) -> str:
        both = train(project, *more, **how)
        for taken, words in zip(shapes, both, strict=True):
            assert not taken.keys() & steps(words).keys()  # no step is taken twice
            taken |= steps(words)
        return "".join(both)

    words = said(code=Exit.DATA)
    stopped = newest(run).step
    assert 0 < stopped < 24
    assert words.count("error: ") == 1
    assert f"of {SOUND + DAMAGED + HELD_OUT} files cannot be used" in words
    assert f"step {stopped} is saved, and --resume goes on from there" in words
    told = (run / "bad_files.jsonl").read_text().splitlines()
    assert len(told) == len(set(told)) > 10

    words = said(*ALLOWED, "--resume", second=LOSE, code=Exit.DATA)
    lost = newest(run).step
    assert stopped < lost < 30
    assert words.count("error: ") == 1
    assert "error: the disk is gone" in words
    assert f"hint: buy another; step {lost} is saved, and --resume goes on from there" in words
    assert "ended by an error: the disk is gone" in (run / "log.txt").read_text()

    said(*ALLOWED, "--resume")
    assert [*shapes[0]] == [*range(30)]
    for step, (first,) in shapes[0].items():
        second = shapes[1].get(step, [])  # none where a bucket ends with one picture
        assert [shape[1:] for shape in second] == [first[1:]] * len(second)
        assert 1 <= first[0] + sum(shape[0] for shape in second) <= 3
    assert len({tuple(first[1:]) for (first,) in shapes[0].values()}) > 5
    assert len(shapes[1]) < 30

    assert flexvae("train", *ALLOWED, "--set", "train.run_dir=alone", "--set", "train.accumulate=2").exit_code == 0
    for mine, other in zip(metrics(run), metrics(project / "alone"), strict=True):
        assert mine == {k: v if isinstance(v, str) else pytest.approx(v, rel=1e-5, abs=1e-5) for k, v in other.items()}
    weights, alone = newest(run).weights(), newest(project / "alone").weights()
    for name, tensor in alone.items():
        torch.testing.assert_close(weights[name], tensor, rtol=0, atol=1e-5)
    assert (run / "bad_files.jsonl").read_text() == (project / "alone/bad_files.jsonl").read_text()
