from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from flexvae_cli.commands._forecast import ask, print_forecast
from flexvae_cli.commands._measured import document, print_answer, size
from flexvae_cli.config import load_config
from flexvae_cli.engine.memory.answer import Answer
from flexvae_cli.engine.memory.child import Request, Trial, run_trial
from flexvae_cli.engine.memory.closed import states_of
from flexvae_cli.engine.memory.devices import find_gpu
from flexvae_cli.engine.memory.forecast import Change, Forecast, Layer, Question
from flexvae_cli.engine.memory.search import Found
from flexvae_cli.errors import Exit, ResourceError

MIB = 2**20
PHASE = ["--set", "train.max_steps=9", "--set", 'phase=[{start=2,input="3x64x64"}]']
CONFIG = """
[model]
encoder = "encoder.json"
decoder = "decoder.json"
[data]
source = "photos"
input = "3x128x128"
[train]
run_dir = "run"
max_steps = 1
batch_size = 5
accumulate = 3
device = "cpu"
[optimizer]
betas = [0.9, 0.99]
"""


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a config."""
    (tmp_path / "flexvae.toml").write_text(CONFIG)
    (tmp_path / "encoder.json").write_text('["C2d_3_32_3_1_1", "VAERB_32_32", "C2d_32_8_4_4"]')
    (tmp_path / "decoder.json").write_text('["C2d_4_32_3_1_1", "UpS_4", "VAERB_32_32", "C2d_32_3_3_1_1"]')
    (tmp_path / "json.py").write_text("raise SystemExit('a file of the working directory was imported')")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_largest_batch_is_one_that_was_run(flexvae) -> None:
    nothing = flexvae("mem", "--memory", "1MiB", "--batch", "1", "--json")
    assert nothing.exit_code == Exit.RESOURCES
    assert "not even one sample fits into 1.0 MiB: batch 1 needs " in nothing.stderr
    one = json.loads(nothing.stdout)
    assert one["largest_batch"] == 0
    assert one["bytes"]["total"] == sum(n for key, n in one["bytes"].items() if key != "total")

    memory = one["bytes"]["total"] + 200 * MIB
    result = flexvae("mem", "--memory", str(memory), "--json", "--assert-batch", "4000")
    answer = json.loads(result.stdout)
    largest = answer["largest_batch"]
    assert result.exit_code == Exit.RESOURCES
    assert f"batch 4,000 does not fit; the largest that fits into {size(memory)} is {largest}" in result.stderr
    assert "trying batch 2\n" in result.stderr
    assert (answer["batch"], answer["accumulate"], answer["device"], answer["memory"]) == (2, 3, "cpu", memory)
    assert len(answer["trials"]) <= 8
    assert {"batch": largest, "outcome": "done"}.items() <= max(
        (t for t in answer["trials"] if t["outcome"] == "done" and t["peak"] <= memory), key=lambda t: t["batch"]
    ).items()

    document = load_config(Path("flexvae.toml")).document
    again = run_trial(Request(document, "flexvae.toml", largest, limit=memory + 20 * MIB))  # runs differ by a little
    assert again.outcome == "done"


@pytest.fixture
def answer() -> Answer:
    measured = Trial(2, "done", "cpu", 2**34, 900 * MIB, 300 * MIB, MIB, 10)
    beyond = Trial(9, "memory", "cpu", 2**34)
    return Answer(measured, states_of(MIB, 10), 2**30, Found(8, beyond, (measured, beyond)), None)


def test_the_table(answer: Answer, capsys: pytest.CaptureFixture[str]) -> None:
    print_answer(load_config(Path("flexvae.toml")), answer)
    lines = capsys.readouterr().out.splitlines()
    assert " ".join(lines[0].split()) == "a training step at batch 2 on cpu MiB"
    cells = {line.rsplit(maxsplit=1)[0]: line.split()[-1] for line in lines if line.strip().endswith(".0")}
    assert cells == {
        "parameters": "4.0",
        "gradients": "4.0",
        "optimizer and other state": "8.0",
        "activations and temporaries": "284.0",
        "Python, torch and its buffers": "600.0",
        "total": "900.0",
    }
    assert "largest batch that fits into 1.00 GiB: 8 (batch 9 needs more)" in lines
    assert "a batch here is a micro-batch; 3 of them make train.batch_size" in lines


def test_the_table_where_the_batch_does_not_fit_at_all(answer: Answer, capsys: pytest.CaptureFixture[str]) -> None:
    killed = Trial(2, "killed", "cpu", 2**34)
    print_answer(load_config(Path("flexvae.toml")), Answer(killed, answer.states, 2**34, Found(1, killed, ()), None))
    out = capsys.readouterr().out
    assert "batch 2 was killed by the system, as if for memory; 16.00 GiB are available" in out
    assert "unknown" in out


def test_the_keys_of_json(answer: Answer) -> None:
    assert document(load_config(Path("flexvae.toml")), answer) == {
        "config": "flexvae.toml",
        "device": "cpu",
        "batch": 2,
        "accumulate": 3,
        "bytes": {
            "parameters": 4 * MIB,
            "gradients": 4 * MIB,
            "optimizer": 8 * MIB + 40,
            "activations": 284 * MIB - 40,
            "overhead": 600 * MIB,
            "total": 900 * MIB,
        },
        "available": 2**34,
        "memory": 2**30,
        "largest_batch": 8,
        "too_large_batch": 9,
        "notes": [],
        "trials": [
            {"batch": 2, "outcome": "done", "peak": 900 * MIB},
            {"batch": 9, "outcome": "memory", "peak": None},
        ],
    }


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--memory", "much"], "mem.memory"),
        (["--device", "tpu"], "train.device"),
        (["--config", "none.toml"], "none.toml"),
        (["--device", "cuda:99"], "'cuda:99' is not on this machine"),
        (["--gpu", "409"], "no GPU '409' is known; did you mean '4090'?"),
        (["--gpu", "t4", "--memory", "20GiB"], "more than t4 has"),
        (["--gpu", "t4", "--probe", "always"], "real steps are taken on this machine's device"),
        (["--gpu", "t4", "--device", "cpu"], "a prediction is for --gpu"),
        (["--probe", "never"], "name one, as in --gpu h100-80"),
        (["--mode", "infer"], "name one, as in --gpu h100-80"),
        (["--mode", "infer", "--probe", "always"], "--mode infer: counts for predictions alone"),
        (["--allocator", "expandable", "--layers", "3"], "--layers: counts for predictions alone"),
        (["--gpu", "t4", "--precision", "tf32"], "t4 has no tf32"),
        (["--gpu", "t4", "--optimizer", "magic"], "optimizer.name"),
        (["--gpu", "t4", "--accumulate", "6"], "cannot accumulate 6"),
        (["--what-if", "--ddp", "2", "--max-resolution"], "--what-if: counts for predictions alone"),
        (["--checkpointing", "auto"], "--checkpointing auto: counts for predictions alone"),
        (["--gpu", "t4", "--checkpointing", "auto", "--mode", "infer"], "--checkpointing: counts for training alone"),
        (["--gpu", "t4", "--norm-dtype", "input", "--mode", "encode"], "--norm-dtype: counts for training alone"),
        (["--gpu", "t4", "--contiguous", "--mode", "encode"], "--channels-last/--contiguous: counts for training"),
        (["--gpu", "t4", "--optimizer", "sgd", "--mode", "decode"], "--optimizer: counts for training alone"),
        (["--gpu", "t4", "--no-ema", "--mode", "infer"], "--ema/--no-ema: counts for training alone"),
        (["--gpu", "t4", "--accumulate", "1", "--mode", "infer"], "--accumulate: counts for training alone"),
        (["--gpu", "t4", "--ddp", "2", "--mode", "infer"], "--ddp: counts for training alone"),
        (["--gpu", "t4", "--mode", "infer", "--write", "new.toml"], "--write: counts for training alone"),
        (["--gpu", "t4", "--mode", "decode", "--precision", "bf16"], "`flexvae decode` computes in fp32 always"),
        (["--gpu", "t4", "--max-resolution", *PHASE], "varies data.input alone, and there is phase[0].input"),
        (["--write", "new.toml"], "would say nothing"),
        (["--ema", "--write", "flexvae.toml"], "is there already: flexvae.toml"),
        (["--ema", "--write", "none/new.toml"], "no such folder: none"),
        (["--norm-dtype", "bf16"], "Invalid value for '--norm-dtype'"),
    ],
)
def test_what_is_wrong_is_told_before_a_trial(flexvae, arguments: list[str], words: str) -> None:
    refused = flexvae("mem", *arguments)
    assert refused.exit_code == (Exit.RESOURCES if "20GiB" in arguments else Exit.USAGE)
    assert words in refused.stderr
    assert refused.stdout == ""


def test_a_prediction_needs_no_gpu(flexvae) -> None:
    options = ["--precision", "fp32", "--checkpointing", "blocks", "--ema", "--optimizer", "sgd", "--accumulate", "2"]
    refused = flexvae("mem", "--gpu", "h100", "--memory", "1GiB", *options, "--json", "--assert-batch", "4000")
    found = json.loads(refused.stdout)
    assert refused.exit_code == Exit.RESOURCES
    words = f"batch 4,000 does not fit; the largest that is sure to fit into 1.00 GiB is {found['largest_batch']}"
    assert words in refused.stderr
    assert 0 < found["largest_batch"] < found["too_large_batch"]
    assert found["largest_batch"] <= found["limit_batch"]
    assert (found["gpu"]["name"], found["batch"], found["precision"]) == ("h100-80", 3, "fp32")
    sizes = found["bytes"]
    assert sizes["total"] == found["reserved"] == sum(n for key, n in sizes.items() if key != "total")
    assert sizes["ema"] == sizes["parameters"]
    assert sizes["state"] < sizes["parameters"]  # SGD without momentum


def test_what_was_chosen_is_written_for_training(flexvae, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    (work / "sub").mkdir()
    options = ["--checkpointing", "auto", "--precision", "fp32", "--batch", "8", "--allocator", "env"]
    told = flexvae("mem", "--gpu", "t4", "--memory", "230MiB", *options, "--write", "sub/small.toml", "--json")
    found = json.loads(told.stdout)
    assert (told.exit_code, found["allocator"]) == (0, "expandable")
    assert found["recomputed"]
    assert found["largest_batch"] >= 8
    train = load_config(Path("sub/small.toml")).settings.train
    assert (train.activation_checkpointing, train.precision) == (tuple(found["recomputed"]), "fp32")
    assert train.run_dir == load_config(Path("flexvae.toml")).settings.train.run_dir
    assert "wrote sub/small.toml" in told.stderr


def test_what_uses_a_trained_net_computes_in_fp32_whatever_it_was_trained_in(flexvae) -> None:
    trained = ["--set", "train.precision=bf16", "--json"]
    modes: dict[str, list[str]] = {"infer": [], "encode": ["--precision", "fp16"], "decode": []}
    found = [
        json.loads(flexvae("mem", "--gpu", "t4", "--memory", "64MiB", "--mode", mode, *options, *trained).stdout)
        for mode, options in modes.items()
    ]
    assert [each["precision"] for each in found] == ["fp32", "fp16", "fp32"]


def test_where_a_trial_could_not_tell_only_the_state_of_adam_is_known(
    answer: Answer, capsys: pytest.CaptureFixture[str]
) -> None:
    config = load_config(Path("flexvae.toml"))
    unknown = replace(answer, measured=Trial(2, "killed", "cpu", 2**34), states=states_of(MIB, 10, adam=False))
    assert document(config, unknown)["bytes"]["optimizer"] is None
    print_answer(config, unknown)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["optimizer", "and", "other", "state", "unknown"] in rows


def test_the_phase_that_was_looked_at_is_told(answer: Answer, capsys: pytest.CaptureFixture[str]) -> None:
    config = load_config(Path("flexvae.toml"))
    noted = replace(answer, measured=replace(answer.measured, note="the input is that of phase[0]"))
    assert document(config, noted)["notes"] == ["the input is that of phase[0]"]
    print_answer(config, noted)
    assert "note: the input is that of phase[0]" in capsys.readouterr().out.splitlines()


@pytest.fixture
def predicted() -> Forecast:
    parts = {"parameters": 10 * MIB, "state": 20 * MIB, "activations": 50 * MIB, "temporaries": 5 * MIB}
    layers = (Layer("decoder.2", "VAERB_32_32", 30 * MIB), Layer("loss", "", 20 * MIB))
    sizes = {"tensors": 85 * MIB, "allocated": 86 * MIB, "reserved": 100 * MIB, "parts": parts, "layers": layers}
    peak = {"stage": "backward", "layer": "decoder.2", "operation": "aten.silu_backward.default"}
    search = {"safe": 31, "too_large": 32, "limit": 40, "one": 0, "asserted_fits": None, "evaluations": 9}
    return Forecast(batch=2, precision="bf16", **sizes, **peak, **search, notes=("something is left out",))


def test_a_prediction_as_a_table(predicted: Forecast, capsys: pytest.CaptureFixture[str]) -> None:
    question = Question({}, "flexvae.toml", find_gpu("t4"), 2, 2**30)
    print_forecast(question, predicted, 1)
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines() if line.strip(" ─")]
    assert lines == [
        "a training step at batch 2 on t4, bf16 MiB share",
        "parameters 10.0 10.0%",
        "optimizer and other state 20.0 20.0%",
        "activations kept for the backward pass 50.0 50.0%",
        "temporaries 5.0 5.0%",
        "held back by torch's allocator 15.0 15.0%",
        "total 100.0 100.0%",
        "the peak stands in the backward pass of decoder.2 VAERB_32_32, at silu_backward",
        "layer code keeps MiB share",
        "decoder.2 VAERB_32_32 30.0 30.0%",
        "largest batch that fits into 1.00 GiB: 31, with a margin; batch 32 does not fit so",
        "largest batch without one, where the allocator gives back what it holds: 40",
        "predicted, not measured: grade C, margin 6%; workspaces by rule",
        "note: something is left out",
    ]


def test_what_was_asked_for_beside_is_told(predicted: Forecast, capsys: pytest.CaptureFixture[str]) -> None:
    question = Question({}, "flexvae.toml", find_gpu("t4"), 2, 2**30, what_if=True, choose=True, resolution=True)
    changes = (Change("--precision bf16", 44, 80 * MIB),)
    more = {"recomputed": ("encoder.1",), "input": "3x64x64", "too_large_input": "3x72x72"}
    print_forecast(question, replace(predicted, grade="E", workspaces="cuDNN 9.24.0", changes=changes, **more), 0)
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines() if line.strip(" ─")]
    assert lines[-9:] == [
        "largest input at batch 2: 3x64x64, with a margin; 3x72x72 does not fit so",
        "what would help largest batch MiB at batch 2",
        "as it is 31 100.0",
        "--precision bf16 44 80.0",
        "so that batch 2 fits:",
        "[train]",
        'activation_checkpointing = ["encoder.1"]',
        "predicted, not measured: grade E, margin 8%; workspaces as cuDNN 9.24.0 names them",
        "note: something is left out",
    ]


def test_a_prediction_where_one_sample_does_not_fit(
    predicted: Forecast, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    nothing = replace(predicted, safe=0, limit=0, one=90 * MIB)
    monkeypatch.setattr("flexvae_cli.engine.memory.forecast.forecast", lambda _: nothing)
    words = r"not even one sample is sure to fit into 64\.0 MiB: it is predicted to need 90\.0 MiB"
    with pytest.raises(ResourceError, match=words):
        ask(Question({}, "flexvae.toml", find_gpu("t4"), 2, 64 * MIB), 0, as_json=False)
    assert "largest batch" not in capsys.readouterr().out


def test_without_a_config_there_is_nothing_to_measure(flexvae, work: Path) -> None:
    (work / "flexvae.toml").unlink()
    refused = flexvae("mem")
    assert refused.exit_code == Exit.USAGE
    assert "no config was given" in refused.stderr


def test_asking_does_not_take_torch(work: Path) -> None:
    modules = "flexvae_cli.commands.mem, flexvae_cli.engine.memory.answer, flexvae_cli.engine.memory.forecast"
    code = f"import sys, {modules}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-P", "-c", code], check=True)
