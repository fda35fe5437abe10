"""`flexvae train` in two processes: the same as in one, however it is stopped."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from PIL import Image
from processes import QUIET, ranks, start, torchrun

from flexvae_cli.engine.checkpoint import newest_checkpoint

CONFIG = """
[model]
encoder = "e.json"
decoder = "d.json"
[data]
source = "photos"
input = "3x16x16"
resize = "none"
validation = "held-out"
workers = 0
[loss]
ssim_metrics = true
kld_target = 0.5
[adversarial]
discriminator = "critic.json"
start = 20
lecam = 0.01
[optimizer]
lr = 1e-3
[schedule]
name = "plateau"
patience = 0
[ema]
decay = 0.9
[train]
run_dir = "run"
max_steps = 60
batch_size = 4
log_every = 1
validate_every = 12
preview_every = 30
checkpoint_every = 3
keep_best = "psnr"
device = "cpu"
"""
LAST = "ckpt/step-00000060"
KILLS = 30 if os.environ.get("FLEXVAE_NIGHTLY") == "1" else 3

TRAIN_AND_TELL = """
import hashlib, sys
from pathlib import Path
from flexvae_cli import main
from flexvae_cli.engine import starting
held, learner = [], starting.Learner
starting.Learner = lambda *arguments: held.append(learner(*arguments)) or held[0]
sys.argv = ["flexvae", "train", "--set", "train.run_dir=whole", "--json"]
try:
    main.run()
except SystemExit as ended:
    assert not ended.code, ended.code
threads = [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]
assert not any("gloo" in name for name in threads), threads  # at the interpreter's end they could abort the process
digest = hashlib.sha256()
for name, tensor in sorted({**held[0].weights(), **held[0].tensors()}.items()):
    digest.update(name.encode() + tensor.detach().contiguous().numpy().tobytes())
print("weights", digest.hexdigest(), file=sys.stderr)
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """9 images to train on, in batches of 4, 4 and 1, and 5 held out; of either one is damaged."""
    return laid_out(tmp_path_factory.mktemp("project"), CONFIG, ["C2d_3_32_4_4", "VAERB_32_32", "C2d_32_4_1"])


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with codebooks that follow their inputs, one in the encoder and two for the latents."""
    adversarial = CONFIG[CONFIG.index("[adversarial]") : CONFIG.index("[optimizer]")]
    config = CONFIG.replace("kld_target = 0.5", "").replace(adversarial, "").replace("max_steps = 60", "max_steps = 24")
    config = config.replace("[data]", 'bottleneck = "RVQ_8_2_2_dropout=0.5"\n[data]')
    encoder = ["C2d_3_32_4_4", "VAERB_32_32", "C2d_32_4_1", "VQ_8_4_revive=0.9", "C2d_4_2_1"]
    return laid_out(tmp_path_factory.mktemp("quantized"), config, encoder)


def laid_out(folder: Path, config: str, encoder: list[str]) -> Path:
    (folder / "flexvae.toml").write_text(config)
    (folder / "e.json").write_text(json.dumps(encoder))
    (folder / "d.json").write_text(json.dumps(["C2d_2_32_1", "VAERB_32_32", "UpS_4", "C2d_32_3_3_1_1"]))
    (folder / "critic.json").write_text(json.dumps(["C2d_3_8_4_2_1", "SiLU", "C2d_8_1_3_1_1"]))
    scenes = sorted((files("flexvae_cli") / "assets/scenery/val").iterdir(), key=lambda path: path.name)
    for name, count, damaged in (("photos", 9, 4), ("held-out", 5, 2)):
        (folder / name).mkdir()
        for index in range(count):
            path = folder / name / f"{name}-{index}.png"
            Image.open(scenes[index]).crop((24 * index, 16 * index, 24 * index + 24, 16 * index + 20)).save(path)
            if index == damaged:
                path.write_bytes(path.read_bytes()[:-300])
    return folder


@pytest.fixture(scope="module")
def whole(project: Path) -> tuple[Path, list[tuple[str, str]]]:
    """A run of two processes from its start to its end, and what either printed."""
    with ranks(["-c", TRAIN_AND_TELL], folder=project) as started:
        ended = [process.communicate(timeout=120) for process in started]
        assert [process.returncode for process in started] == [0, 0], ended
    return project / "whole", ended


@pytest.fixture(scope="module")
def alone(project: Path) -> Path:
    """The same run of one process that cuts every step in two."""
    command = [
        sys.executable,
        "-m",
        "flexvae_cli",
        "train",
        "--set",
        "train.run_dir=alone",
        "--set",
        "train.accumulate=2",
    ]
    with start(command, {**os.environ, **QUIET}, project) as process:
        _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return project / "alone"


def metrics(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def shapes(checkpoint: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The tensors of a checkpoint, by file and name."""
    from safetensors.torch import load_file

    return {
        f"{path.name}:{name}": (str(tensor.dtype), tuple(tensor.shape))
        for path in sorted(checkpoint.glob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def digests(run: Path, last: str = LAST) -> dict[str, str]:
    """The sha256 of what a run has learned."""
    state = json.loads((run / last / "state.json").read_text())
    return {name: digest["sha256"] for name, digest in state["files"].items() if name.endswith(".safetensors")}


def tree(run: Path) -> set[str]:
    found = {str(path.relative_to(run)) for path in run.rglob("*") if "events.out" not in path.name}
    return found - {".lock"}


def test_two_processes_do_what_one_does_in_two_parts(whole, alone):
    """Also where the last step of an epoch has one sample, so that one process has none."""
    run, _ = whole
    ours, theirs = metrics(run), metrics(alone)
    apart = {"images_per_second", "data_wait", "memory_bytes"}
    assert len(ours) == len(theirs) == 60 + 5
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.keys() == other.keys()
        assert {k: v for k, v in mine.items() if k not in apart} == {
            k: v if isinstance(v, str) else pytest.approx(v, rel=1e-5, abs=1e-5)
            for k, v in other.items()
            if k not in apart
        }
    (mine, _), (other, _) = newest_checkpoint(run), newest_checkpoint(alone)
    for name, tensor in other.weights().items():
        torch.testing.assert_close(mine.weights()[name], tensor, rtol=0, atol=1e-5)


def test_two_processes_write_the_files_that_one_writes(whole, alone):
    run, _ = whole
    assert tree(run) == tree(alone)
    assert shapes(run / LAST) == shapes(alone / LAST)
    models = [json.loads((each / LAST / "model.json").read_text()) for each in (run, alone)]
    assert models[0].keys() == models[1].keys()
    assert (run / "bad_files.jsonl").read_text() == (alone / "bad_files.jsonl").read_text()


def test_all_processes_hold_the_same_and_one_speaks(whole):
    _, (first, second) = whole
    told = [[line for line in err.splitlines() if line.startswith("weights ")] for _, err in (first, second)]
    assert told[0] == told[1]
    assert second == ("", "\n".join(told[1]) + "\n")
    assert json.loads(first[0])["step"] == 60
    assert first[1].count("skipped: photos-4.png") == first[1].count("skipped: held-out-2.png") == 1


def test_a_run_goes_on_with_another_number_of_processes(project, whole, flexvae, monkeypatch):
    monkeypatch.chdir(project)
    shutil.copytree(whole[0], project / "fewer", symlinks=True)
    more = ["--set", "train.run_dir=fewer", "--set", "train.max_steps=61"]
    ended = flexvae("train", "--resume", *more, "--set", "train.accumulate=2")
    assert ended.exit_code == 0, ended.stderr
    assert "from here on: processes was 2, is 1" in ended.stderr
    assert "micro-batches" not in ended.stderr
    ended = flexvae("train", "--resume", *more)
    assert "a step was cut into 2 micro-batches, is cut into 1" in ended.stderr


def test_a_process_that_is_killed_costs_nothing_but_time(project, whole):
    """Any of them, at any time: the command ends, and goes on to the same weights."""
    run, chance, kills = project / "run", random.Random(0), 0
    while kills < KILLS:
        shutil.rmtree(run, ignore_errors=True)
        for victims in ([1], [0], [0, 1]):
            before = newest(run)
            process = torchrun(project, "train", "--resume")
            while newest(run) < before + 3 and process.poll() is None:
                time.sleep(0.005)
            time.sleep(chance.random() * 0.1)
            found = [of_rank(process, rank) for rank in victims]
            for pid in filter(None, found):
                os.kill(pid, signal.SIGKILL)
            process.communicate(timeout=60)
            if None in found:  # it had come to its end before
                break
            assert process.returncode != 0
            kills += 1
        process = torchrun(project, "train", "--resume")
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert digests(run) == digests(whole[0])


def test_codebooks_stay_in_step_in_two_processes_and_survive_a_kill(quantized):
    with ranks(["-c", TRAIN_AND_TELL], folder=quantized) as started:
        ended = [process.communicate(timeout=120) for process in started]
        assert [process.returncode for process in started] == [0, 0], ended
    hashes = {line for _, err in ended for line in err.splitlines() if line.startswith("weights ")}
    assert len(hashes) == 1  # weights, codebooks and all that belongs to them, in both
    told = [row for row in metrics(quantized / "whole") if row["kind"] == "train"]
    assert {"encoder.3.usage", "encoder.3.perplexity", "encoder.3.entropy", "bottleneck.usage"} <= told[-1].keys()
    assert sum(row["encoder.3.revived"] for row in told) > 0
    command = ["-m", "flexvae_cli", "train", "--resume"]
    with ranks(command, folder=quantized) as (first, second):
        await_step(quantized / "run", 6, first)
        second.kill()
        first.communicate(timeout=60)
    assert 6 <= newest(quantized / "run") < 24
    with ranks(command, folder=quantized) as started:
        ended = [process.communicate(timeout=120) for process in started]
        assert [process.returncode for process in started] == [0, 0], ended
    last = "ckpt/step-00000024"
    assert digests(quantized / "run", last) == digests(quantized / "whole", last)


def test_sigterm_to_torchrun_saves(project):
    run = project / "long"
    process = torchrun(project, "train", "--set", "train.run_dir=long", "--set", "train.max_steps=100000")
    await_step(run, 3, process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert f"stopped at step {newest(run)}, saved" in err


def test_a_signal_to_one_process_stops_all_even_if_it_is_sent_on(project):
    run = project / "signalled"
    command = ["-m", "flexvae_cli", "train", "--set", "train.run_dir=signalled", "--set", "train.max_steps=100000"]
    with ranks(command, folder=project) as (first, second):
        await_step(run, 3, first)
        second.send_signal(signal.SIGTERM)
        second.send_signal(signal.SIGTERM)
        (_, said), (_, nothing) = (process.communicate(timeout=60) for process in (first, second))
        assert (first.returncode, second.returncode) == (143, 143), (said, nothing)
    assert f"stopped at step {newest(run)}, saved" in said
    assert nothing == ""


@pytest.mark.parametrize(
    ("mine", "theirs", "said"),
    [
        ("train.batch=4", "train.batch=4", "did you mean train.batch_size?"),
        ("train.accumulate=3", "train.accumulate=3", "cannot cut a batch of 4 into 6 parts"),
        ("train.seed=0", "train.seed=1", "do not agree on train.seed: rank 1 differs from rank 0"),
    ],
)
def test_what_is_wrong_in_all_processes_is_said_once(project, mine, theirs, said):
    commands = [["-m", "flexvae_cli", "train", "--set", "train.run_dir=new", "--set", each] for each in (mine, theirs)]
    with ranks(*commands, folder=project) as started:
        ended = [process.communicate(timeout=60) for process in started]
        assert [process.returncode for process in started] == [2, 2]
    errors = "".join(err for _, err in ended)
    assert said in errors
    assert errors.count("error:") == 1
    assert not (project / "new").exists()


def test_what_ends_one_process_ends_all_and_is_said_once(project, whole):
    process = torchrun(project, "train", "--set", "train.run_dir=whole")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    told = [line for line in err.splitlines() if line.startswith("error:")]
    assert told == [f"error: {whole[0]}: already holds a run at step 60"]


def newest(run: Path) -> int:
    """The step of the newest checkpoint."""
    return max((int(path.name[5:]) for path in (run / "ckpt").glob("step-*")), default=0)


def await_step(run: Path, step: int, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 120
    while newest(run) < step:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.005)


def of_rank(launcher: subprocess.Popen[str], rank: int) -> int | None:
    """The process of a rank that a launcher started and that has not ended."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            variables = (stat.parent / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if parent == launcher.pid and b"RANK=%d" % rank in variables:
            return int(stat.parent.name)
    return None
