"""`flexvae train` as people run it: real processes, real kills, real configs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROUNDS = 16 if os.environ.get("FLEXVAE_NIGHTLY") == "1" else 1
CONFIG = """
[model]
encoder = "e.json"
decoder = "d.json"
[data]
source = "builtin:scenery"
input = "3x32x32"
resize = "none"
validation = "builtin:scenery/val"
workers = 2
[train]
run_dir = "run"
max_steps = 40
batch_size = 4
log_every = 5
checkpoint_every = 5
validate_every = 100
preview_every = 0
device = "cpu"
"""


@pytest.fixture
def project(tmp_path):
    (tmp_path / "flexvae.toml").write_text(CONFIG)
    (tmp_path / "e.json").write_text(json.dumps(["C2d_3_32_4_4", "VAERB_32_32", "C2d_32_8_1"]))
    (tmp_path / "d.json").write_text(json.dumps(["C2d_4_32_1", "VAERB_32_32", "UpS_4", "C2d_32_3_3_1_1"]))
    return tmp_path


def start(project: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "flexvae_cli", *arguments]
    return subprocess.Popen(command, cwd=project, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def flexvae(project: Path, *arguments: str, code: int = 0) -> tuple[str, str]:
    with start(project, *arguments) as process:
        try:
            out, err = process.communicate(timeout=280)
        finally:
            process.kill()
    assert "Traceback" not in err
    assert process.returncode == code, err
    return out, err


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 240
    while not path.exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.01)


def fingerprint(run: Path) -> dict[str, str]:
    state = json.loads((run / "ckpt/step-00000040/state.json").read_text())
    return {name: digest["sha256"] for name, digest in state["files"].items() if name.endswith(".safetensors")}


@pytest.mark.timeout(900 * ROUNDS)
def test_forty_steps_equal_three_kills_and_the_rest(project):
    out, err = flexvae(project, "train", "--set", "train.run_dir=whole", "--json")
    summary = json.loads(out)
    assert summary["step"] == 40
    assert summary["validation"]["psnr"] > 5
    assert "validation at step 40:" in err
    for _ in range(ROUNDS):
        shutil.rmtree(project / "run", ignore_errors=True)
        for step in (5, 15, 25):
            process = start(project, "train", "--resume")
            wait_for(project / f"run/ckpt/step-{step:08d}", process)
            process.kill()
            process.communicate()
            assert not (project / "run/ckpt/step-00000040").exists()
        _, err = flexvae(project, "train", "--resume")
        assert "continuing at step" in err
        assert fingerprint(project / "run") == fingerprint(project / "whole")
    # the run is there now: starting it anew is refused, continuing it has nothing to do
    _, err = flexvae(project, "train", code=2)
    assert "already holds a run at step 40" in err
    assert "--resume" in err
    flexvae(project, "train", "--resume")


def test_ctrl_c_saves_says_how_to_go_on_and_leaves_no_worker(project):
    process = start(project, "train", "--set", "train.max_steps=100000")
    wait_for(project / "run/ckpt/step-00000005", process)
    _, err = flexvae(project, "train", "--resume", code=5)
    assert f"in use by process {process.pid}" in err
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "continue with: flexvae train --set train.max_steps=100000 --resume" in err
    newest = sorted((project / "run/ckpt").iterdir())[-1].name
    assert f"stopped at step {int(newest[5:])}, saved" in err
    deadline = time.monotonic() + 20
    while (left := children_of(process.pid)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left


def children_of(pid: int) -> list[str]:
    """Processes of the run: those whose parent or session leader was `pid`."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            found.append(stat.parent.name)
    return found


@pytest.mark.parametrize(
    ("spoil", "arguments", "code", "said"),
    [
        ({}, ["--set", "train.batch=4"], 2, "did you mean train.batch_size?"),
        ({}, ["--set", "data.source=nowhere"], 3, "error: data.source: no such folder: "),
        ({}, ["--set", "data.source=builtin:scnery"], 3, "did you mean 'builtin:scenery'"),
        (
            {"photos/readme.txt": "no image"},
            ["--set", "data.source=photos"],
            3,
            "data.source: nothing to read in photos",
        ),
        ({}, ["--set", "train.device=cuda:7"], 2, "train.device: 'cuda:7' is not on this machine"),
        ({"e.json": '["C2d_3_32_4_4", "VAERB_64_64", "C2d_32_8_1"]'}, [], 2, "VAERB_64_64 takes 64 channels"),
        ({"e.json": "[]"}, [], 2, "e.json: an empty list"),
        ({"d.json": '{"a": 1}'}, [], 2, "d.json: a structure is a JSON list of codes, not an object"),
        ({"d.json": '["C2d_4_32_1", "UpS_2", "C2d_32_3_1"]'}, [], 2, "the decoder gives 3x16x16"),
        ({"flexvae.toml": "[train\n"}, [], 2, "flexvae.toml:1"),
        ({"run/notes.txt": "mine"}, [], 2, "is not empty and holds no run"),
        ({}, ["--config", "none.toml"], 2, "none.toml"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_written(project, spoil, arguments, code, said):
    for name, text in spoil.items():
        (project / name).parent.mkdir(exist_ok=True)
        (project / name).write_text(text)
    before = set(project.rglob("*"))
    _, err = flexvae(project, "train", *arguments, code=code)
    assert said in err
    assert err.startswith("error: ")
    assert set(project.rglob("*")) == before


def test_the_seed_s_own_nets_train_and_are_read_back(project):
    """The full 256x256 nets of the seed, three steps of one image."""
    config = str(ROOT / "configs/seed.toml")
    sets = [f"train.run_dir={project / 'seed'}", "train.max_steps=3", "train.batch_size=1", "train.accumulate=1"]
    sets += ["train.log_every=1", "data.workers=0", "data.validation=0", "train.preview_every=0"]
    arguments = [item for each in sets for item in ("--set", each)]
    flexvae(project, "train", "--config", config, *arguments)
    lines = [json.loads(line) for line in (project / "seed/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert all(line[term] is not None for line in lines for term in ("loss", "reconstruction", "kld", "ssim"))
    photo = ROOT / "flexvae_cli/assets/scenery/val/fog2.jpg"
    out, _ = flexvae(project, "infer", str(project / "seed"), str(photo), str(project / "out"), "--json")
    assert json.loads(out)["images"][0]["size"] == [256, 512]


def test_training_goes_on_though_nobody_listens(project):
    """`flexvae train 2>&1 | head -1`: the reader leaves after a line, the training comes to its end."""
    command = [sys.executable, "-m", "flexvae_cli", "train", "--set", "train.max_steps=10", "--json"]
    read, write = os.pipe()
    with subprocess.Popen(command, cwd=project, stdout=write, stderr=write) as process:
        os.close(write)
        with os.fdopen(read) as reader:
            assert reader.readline().startswith("starting: ")
        assert process.wait(240) == 0
    assert (project / "run/ckpt/step-00000010/state.json").exists()
    assert "done: 10 steps" in (project / "run/log.txt").read_text()


def test_training_needs_no_terminal_at_all(project):
    command = f"{sys.executable} -m flexvae_cli train --set train.max_steps=5 <&- >&- 2>&-"
    assert subprocess.run(["sh", "-c", command], check=False, cwd=project, timeout=240).returncode == 0
    assert (project / "run/ckpt/step-00000005/state.json").exists()


def test_a_folder_with_a_config_json_of_somebody_else_is_left_alone(project):
    (project / "run/.tmp-1-5").mkdir(parents=True)
    (project / "run/config.json").write_text('{"model_type": "bert"}')
    _, err = flexvae(project, "train", "--resume", code=2)
    assert "is not empty and holds no run" in err
    assert sorted(p.name for p in (project / "run").iterdir()) == [".tmp-1-5", "config.json"]
    assert (project / "run/config.json").read_text() == '{"model_type": "bert"}'


def test_a_reader_that_leaves_early_is_no_error(project):
    process = start(project, "layers", "--json")
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(60) == 0
    process.stderr.close()
