"""Predictions for GPUs that are not here: devices, workspaces, and the whole answer from its own process."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from learners import plan_for

from flexvae_cli.config.loading import merged
from flexvae_cli.engine.memory import following, scaling
from flexvae_cli.engine.memory.allocator_settings import allocator_settings
from flexvae_cli.engine.memory.changes import choices_for
from flexvae_cli.engine.memory.child import Request, run_trial
from flexvae_cli.engine.memory.choosing import choose, with_recomputed
from flexvae_cli.engine.memory.cudnn import Call
from flexvae_cli.engine.memory.devices import CONTEXT, GPUS, NCCL, Gpu, find_gpu
from flexvae_cli.engine.memory.following import Followed
from flexvae_cli.engine.memory.forecast import Forecast, Question, forecast, require_precision, usable
from flexvae_cli.engine.memory.forecaster import predict
from flexvae_cli.engine.memory.scaling import safest
from flexvae_cli.engine.memory.workspace import Libraries, convolution_workspace
from flexvae_cli.errors import FlexVAEError, ResourceError, UsageError

MIB = 2**20
H100, A100, T4 = (find_gpu(name) for name in ("h100-80", "a100-80", "t4"))


def question(folder: Path, batch: int = 2, memory: int = 256 * MIB, **tables: Any) -> Question:
    plan = plan_for(folder, **{"data": {"input": "3x32x32"}, **tables})
    document = plan.settings.model_dump(mode="json", exclude_none=True)
    return Question(document, str(folder / "c.toml"), H100, batch, memory)


# ---------------------------------------------------------------------------------------------------------- devices


@pytest.mark.parametrize(
    ("name", "found"), [("h100-80", "h100-80"), ("H100", "h100-80"), ("RTX 4090", "4090"), ("NVIDIA T4", "t4")]
)
def test_gpus_are_found_by_what_people_call_them(name: str, found: str) -> None:
    assert find_gpu(name).name == found


@pytest.mark.parametrize(
    ("name", "words"),
    [("a100", "there are several 'a100': 'a100-80' or 'a100-40'"), ("h10", "no GPU 'h10' is known"), ("409", "'4090'")],
)
def test_an_unknown_gpu_is_answered_with_the_nearest(name: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        find_gpu(name)


def test_the_table_is_sane() -> None:
    for name, gpu in GPUS.items():
        assert gpu.name == name
        assert 7 * 2**30 < gpu.total < 200 * 2**30
        assert gpu.bf16 == (gpu.capability >= (8, 0))
    assert (H100.cublas_workspace, T4.cublas_workspace) == (32 * MIB, 8_519_680)


def test_cuda_takes_its_own_part() -> None:
    assert usable(T4, None) == T4.total - CONTEXT
    assert usable(T4, None, processes=2) == T4.total - CONTEXT - NCCL
    assert usable(T4, 2**30) == 2**30
    with pytest.raises(ResourceError, match=r"20\.00 GiB are more than t4 has"):
        usable(T4, 20 * 2**30)


# -------------------------------------------------------------------------------------------------------- workspaces


@pytest.mark.parametrize(
    ("gpu", "dtype", "last", "tf32", "forward", "backward"),
    [  # MiB that cuDNN names for 128 -> 128 channels at 256 x 256, 8 samples: 256 MiB on each side in fp32
        (H100, torch.float32, False, True, 512.6, 513.7),
        (H100, torch.float32, True, True, 0.0, 1.1),
        (H100, torch.float32, False, False, 0.0, 0.0),
        (H100, torch.float32, True, False, 512.6, 512.6),
        (H100, torch.bfloat16, False, False, 256.3, 257.4),
        (H100, torch.bfloat16, True, False, 0.0, 1.1),
        (A100, torch.float32, False, True, 256.6, 517.6),
        (A100, torch.float32, True, True, 256.6, 517.1),
        (A100, torch.float32, False, False, 1.6, 1.6),
        (A100, torch.float32, True, False, 514.1, 514.1),
        (A100, torch.float16, True, False, 0.0, 5.1),
        (T4, torch.float32, False, False, 1.6, 1.6),
        (T4, torch.float32, True, False, 514.1, 514.1),
    ],
)
def test_the_rule_gives_what_cudnn_names(
    gpu: Gpu, dtype: torch.dtype, last: bool, tf32: bool, forward: float, backward: float
) -> None:
    x = torch.empty(8, 128, 256, 256, device="meta", dtype=dtype)
    weight = torch.empty(128, 128, 3, 3, device="meta", dtype=dtype)
    for is_backward, named in ((False, forward), (True, backward)):
        found = convolution_workspace(gpu, x, weight, x, channels_last=last, backward=is_backward, tf32=tf32)
        assert found / MIB == pytest.approx(named, abs=8.0)


def test_a_depthwise_convolution_has_no_workspace_and_blas_takes_its_own_once() -> None:
    ask, aten = Libraries(H100), torch.ops.aten
    x, weight = torch.empty(1, 8, 4, 4, device="meta"), torch.empty(8, 1, 3, 3, device="meta")
    assert not list(ask(aten.convolution.default, (x, weight, None, [1], [1], [1], False, [0], 8), x))
    first, second = (list(ask(aten.mm.default, (), x)) for _ in range(2))
    assert [(extra.bytes, extra.stays) for extra in first] == [(32 * MIB, True)]
    assert second == []


# --------------------------------------------------------------------------------------------------------- forecasts


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Question:
    return replace(question(tmp_path_factory.mktemp("net")), asserted=400)


@pytest.fixture(scope="module")
def found(asked: Question) -> Forecast:
    return forecast(asked)


def test_the_parts_make_up_what_is_reserved(found: Forecast) -> None:
    assert sum(found.parts.values()) == found.tensors
    assert found.tensors <= found.allocated <= found.reserved == found.tensors + found.slack
    assert found.precision == "bf16"  # `auto` on that GPU
    assert (found.batch, found.notes) == (2, ())
    assert {layer.key: layer.code for layer in found.layers}["encoder.1"] == "VAERB_32_32"
    sizes = [layer.kept for layer in found.layers]
    assert sizes == sorted(sizes, reverse=True)
    assert sum(sizes) == found.parts["activations"]


def test_the_largest_batch_is_one_that_was_followed(asked: Question, found: Forecast) -> None:
    followed = Followed(asked)
    reserved = {n: followed.replayed(n).reserved for n in (found.safe, found.too_large, found.limit)}
    assert found.too_large is not None
    margin = 1 + found.margin
    assert reserved[found.safe] * margin <= asked.memory < reserved[found.too_large] * margin
    assert found.safe < found.too_large <= found.safe + max(1, found.too_large // 64)
    assert found.safe <= found.limit
    assert followed.replayed(found.limit, asked.memory).fits
    assert found.asserted_fits is (found.safe >= 400)
    assert found.evaluations <= 8  # one of them is the asserted batch


def test_expandable_segments_hold_less_where_much_is_held(asked: Question) -> None:
    names = ("default", "expandable")
    default, expandable = (Followed(replace(asked, allocator=name)).replayed(2000) for name in names)
    assert expandable.reserved < default.reserved
    assert expandable.allocated <= default.allocated


def test_where_one_sample_does_not_fit(tmp_path: Path) -> None:
    found = predict(question(tmp_path, memory=MIB))
    assert (found.safe, found.limit, found.too_large) == (0, 0, 1)
    assert found.one > MIB


def test_precision_and_layout_are_those_of_the_gpu(tmp_path: Path) -> None:
    auto = question(tmp_path)
    assert [Followed(replace(auto, gpu=gpu)).precision for gpu in (H100, T4)] == ["bf16", "fp32"]
    assert Followed(auto).plan.settings.train.layout == "channels-last"
    assert Followed(replace(auto, mode="infer")).precision == "fp32"
    tf32 = question(tmp_path, train={"precision": "tf32", "compile": True})
    assert Followed(tf32).precision == "fp32"
    assert len(Followed(tf32).notes) == 2
    with pytest.raises(UsageError, match="t4 has no tf32"):
        require_precision("tf32", T4)


def test_a_net_that_is_not_of_images_alone_stays_contiguous(tmp_path: Path) -> None:
    (tmp_path / "e.json").write_text(json.dumps(["C2d_3_32_4_4", "Swin_32_4_window-size=4", "C2d_32_4_1"]))
    for train in ({}, {"precision": "bf16", "layout": "contiguous"}):
        followed = Followed(question(tmp_path, train=train))
        assert not followed.of_images
        assert "--channels-last" not in [choice.options for choice in choices_for(followed)]
    assert Followed(question(tmp_path)).replayed(1).fits


def test_what_helps_in_training_is_not_offered_elsewhere(tmp_path: Path) -> None:
    asked = replace(question(tmp_path, train={"precision": "fp32"}), mode="decode")
    assert [choice.options for choice in choices_for(Followed(asked))] == ["--allocator expandable"]


@pytest.mark.parametrize("mode", ["infer", "encode", "decode"])
def test_what_uses_a_trained_net_takes_nothing_from_train(tmp_path: Path, mode: Any) -> None:
    other = {"fuse": "on", "layout": "channels-last", "norm_dtype": "input", "activation_checkpointing": "blocks"}
    peaks = [
        Followed(replace(question(tmp_path, train={"precision": "bf16", **table}), mode=mode)).at(8).peak
        for table in ({}, other)
    ]
    assert peaks[0] == peaks[1]


def test_the_phase_with_the_largest_input_is_the_one_that_is_followed(tmp_path: Path) -> None:
    phases = [{"start": 10, "input": "3x64x64"}, {"start": 20, "input": "3x48x48"}]
    growing, large = question(tmp_path, phase=phases), question(tmp_path, data={"input": "3x64x64"})
    followed = Followed(growing)
    assert followed.at(2).peak.bytes == Followed(large).at(2).peak.bytes
    assert followed.notes == ["the input is that of phase[0], the largest of all phases: 3x64x64"]
    trial = run_trial(Request(growing.document, growing.config, 1))
    assert (trial.outcome, trial.note) == ("done", followed.notes[0])


def test_half_precision_and_norms_in_it_take_less(tmp_path: Path) -> None:
    tables = ({"precision": "fp32"}, {"precision": "bf16"}, {"precision": "bf16", "norm_dtype": "input"})
    peaks = [Followed(question(tmp_path, train=table)).at(16).peak.bytes for table in tables]
    assert peaks == sorted(peaks, reverse=True)
    assert len(set(peaks)) == 3


@pytest.mark.parametrize("mode", ["infer", "encode", "decode"])
def test_the_other_modes_hold_weights_and_temporaries(tmp_path: Path, mode: Any) -> None:
    found = predict(replace(question(tmp_path, memory=8 * MIB), mode=mode))
    assert found.parts.keys() <= {"parameters", "samples", "temporaries", "workspace"}
    assert (found.layers, found.stage) == ((), "forward")
    assert found.safe > 7  # of training, no more fit


def test_what_is_wrong_with_the_structures_comes_back(tmp_path: Path) -> None:
    asked = question(tmp_path)
    (tmp_path / "e.json").write_text(json.dumps(["Ghost_1"]))
    with pytest.raises(UsageError, match=r"(?s)e\.json.*Ghost"):
        forecast(asked)


def test_a_prediction_takes_no_longer_than_it_may(tmp_path: Path) -> None:
    with pytest.raises(FlexVAEError, match="the prediction took too long"):
        forecast(question(tmp_path), time_limit=0.2)


def test_a_net_that_goes_other_ways_at_other_batches_is_followed_at_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    aimed = scaling.largest(Followed(question(tmp_path, memory=32 * MIB)))
    monkeypatch.setattr(scaling, "_alike", lambda *_: False)
    assert scaling.largest(Followed(question(tmp_path, memory=32 * MIB))) == aimed


def test_what_would_help_is_what_each_choice_gives(tmp_path: Path) -> None:
    asked = replace(question(tmp_path, memory=24 * MIB, train={"precision": "fp32", "batch_size": 2}), what_if=True)
    changes = {change.options: change for change in predict(asked).changes}
    assert list(changes) == [
        "--allocator expandable",
        "--precision bf16",
        "--precision bf16 --norm-dtype input",
        "--checkpointing blocks",
        "--allocator expandable --precision bf16 --norm-dtype input --checkpointing blocks",
    ]
    blocks = {"train": {"activation_checkpointing": "blocks"}}
    alone = predict(replace(asked, document=merged(asked.document, blocks), what_if=False))
    change = changes["--checkpointing blocks"]
    assert (change.largest, change.reserved) == (alone.safe, alone.reserved)
    assert changes["--allocator expandable"].reserved <= Followed(asked).replayed(asked.batch).reserved


def test_more_micro_batches_help_where_one_does_not_fit(tmp_path: Path) -> None:
    asked = question(tmp_path, memory=96 * MIB, train={"precision": "fp32", "batch_size": 400})
    last = predict(replace(asked, batch=400, what_if=True)).changes[-1]
    parts = int(last.options.removeprefix("--accumulate "))
    assert last.largest >= -(-400 // parts)
    assert parts > 1


def test_as_few_blocks_are_recomputed_as_let_the_batch_fit(tmp_path: Path) -> None:
    asked = question(tmp_path, batch=2048)
    needs = [Followed(with_recomputed(asked, entries)).safe(2048).peak for entries in ((), ("encoder.1",))]
    assert choose(replace(asked, memory=max(needs))) == ()
    ranked = choose(replace(asked, memory=1))  # nothing is enough
    assert sorted(ranked) == ["decoder.1", "encoder.1"]
    assert Followed(with_recomputed(asked, ranked[:1])).safe(2048).peak < needs[0]
    chosen = choose(replace(asked, memory=Followed(with_recomputed(asked, ranked[:1])).safe(2048).peak))
    assert chosen == ranked[:1]


def test_processes_pack_gradients_beside_the_net(tmp_path: Path) -> None:
    alone, four = (Followed(replace(question(tmp_path), processes=n)) for n in (1, 4))
    weights = alone.parts(2)["parameters"]
    packed, none = ([b.bytes for b in f.at(2).blocks if b.operation == "aten.cat.default"] for f in (four, alone))
    assert weights in packed
    assert weights not in none
    assert alone.at(2).peak.bytes <= four.at(2).peak.bytes
    assert four.notes


def test_the_largest_input_fits_and_the_next_does_not(tmp_path: Path) -> None:
    asked = replace(question(tmp_path, memory=128 * MIB), resolution=True)
    found = predict(asked)
    sizes = [int(text.rpartition("x")[2]) for text in (found.input, found.too_large_input)]
    assert 0 < sizes[1] - sizes[0] <= max(4, sizes[1] // 64)
    assert not sizes[0] % 4  # what the net takes

    def needs(size: int) -> int:
        document = merged(asked.document, {"data": {"input": f"3x{size}x{size}"}})
        return Followed(replace(asked, document=document)).safe(asked.batch).peak

    assert needs(sizes[0]) <= asked.memory < needs(sizes[1])


# ------------------------------------------------------------------------------------------------- margins and notes


class Hesitant:
    """A cuDNN that names no plan for more than so many samples."""

    version = "9.0.0"

    def __init__(self, most: int) -> None:
        self.most = most

    def workspace(self, call: Call) -> int | None:
        return 0 if call.image[0] <= self.most else None


@pytest.mark.parametrize("asserted", [None, 150])
def test_where_the_rule_is_taken_on_the_way_everything_has_the_wider_margin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asserted: int | None
) -> None:
    asked = replace(question(tmp_path, memory=128 * MIB), asserted=asserted)
    monkeypatch.setattr(following, "cudnn_for", lambda gpu: Hesitant(20))
    found = predict(asked)
    assert (found.grade, found.margin, found.workspaces) == ("C", 0.06, "rule")
    followed = Followed(asked)
    followed.ruled = True  # from the first batch on
    assert found.safe == safest(followed).largest > 20


@pytest.mark.parametrize(("way", "count"), [(False, 0), (True, 1), ("reduce-overhead", 2), ("max-autotune", 2)])
def test_what_compiling_changes_is_noted(tmp_path: Path, way: bool | str, count: int) -> None:
    notes = Followed(question(tmp_path, train={"compile": way})).notes
    assert len(notes) == count
    assert any("CUDA graphs" in note for note in notes) == (count == 2)


# ---------------------------------------------------------------------------------------------------- the environment


def test_the_allocator_is_read_from_the_environment() -> None:
    assert allocator_settings({}) == {"allocator": "default", "split": None}
    both = {"PYTORCH_ALLOC_CONF": "expandable_segments:True", "PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64"}
    assert allocator_settings(both) == {"allocator": "expandable", "split": None}
    del both["PYTORCH_ALLOC_CONF"]
    assert allocator_settings(both) == {"allocator": "default", "split": 64 * MIB}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("max_split_size_mb:128,expandable_segments:True", "together leak what they reserve"),
        ("expandable_segments:yes", "wants True or False, not 'yes'"),
        ("expandable_segments:true", "wants True or False, not 'true'"),
        ("max_split_size_mb:8", "wants MiB, more than 20, not '8'"),
        ("backend:cudaMallocAsync", "'backend' is not replayed"),
        ("roundup_power2_divisions:[256:1,512:2,>:4]", "'roundup_power2_divisions' is not replayed"),
    ],
)
def test_what_cannot_be_replayed_is_refused(value: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        allocator_settings({"PYTORCH_ALLOC_CONF": value})
    (problem,) = caught.value.problems
    assert "--allocator default" in problem.hint
