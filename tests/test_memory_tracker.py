"""A training step on tensors without memory: what it would hold, compared with steps that are taken for real."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from learners import learner_for, plan_for, samples
from torch import nn
from torch.nn import functional as F

from flexvae_cli.engine.memory.child import Request, run_trial
from flexvae_cli.engine.memory.dry import Ways, by_category, by_layer, dry_pass, dry_step
from flexvae_cli.engine.memory.semantics import CudaSemantics, on_meta
from flexvae_cli.engine.memory.tracker import Extra, Tracker, follow_layers
from flexvae_cli.errors import UsageError

DATA = {"input": "3x32x32"}
CRITIC = '["C2d_3_8_4_2_1", "SiLU", "C2d_8_1_4_1_1"]'
CASES: dict[str, dict[str, Any]] = {
    "adamw": {},
    "ema": {"ema": {"decay": 0.9}},
    "accumulate": {"train": {"accumulate": 2}},
    "recomputed": {"train": {"activation_checkpointing": "blocks"}},
    "sgd": {"optimizer": {"name": "sgd", "momentum": 0.9}},
    "terms": {"loss": {"ssim_metrics": True, "sparse_metrics": True, "reconstruction": "huber_0.1"}},
    "logits": {"loss": {"reconstruction": "bce"}},
    "frozen": {"train": {"freeze": ["encoder.*"]}},
    "adversarial": {"adversarial": {"discriminator": "CRITIC", "r1": 1.0}},
}
HOST = {name: {"optimizer": {"name": name}} for name in ("nadam", "radam", "rmsprop", "adafactor")}
"""These keep their step counts on the host."""


def plan_of(folder: Path, tables: dict[str, Any]) -> Any:
    (folder / "critic.json").write_text(CRITIC)
    text = str(folder / "critic.json")
    given_tables = {
        name: {key: text if value == "CRITIC" else value for key, value in table.items()}
        for name, table in tables.items()
    }
    return plan_for(folder, **{"data": DATA, **given_tables})


def held(tracker: Tracker) -> dict[str, int]:
    return by_category(tracker.held_at(tracker.peak.event))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("batch", [1, 3])
def test_without_memory_the_peak_is_the_one_of_real_tensors(tmp_path: Path, name: str, batch: int) -> None:
    plan = plan_of(tmp_path, CASES[name])
    real, dry = dry_step(plan, batch, device="cpu"), dry_step(plan, batch)
    assert dry.peak.bytes == real.peak.bytes
    assert sum(held(dry).values()) == dry.peak.bytes
    assert held(dry) == pytest.approx(held(real), abs=64)  # a scalar may be a constant there and a result here


@pytest.mark.parametrize("name", HOST)
def test_optimizers_without_a_fused_form(tmp_path: Path, name: str) -> None:
    plan = plan_of(tmp_path, HOST[name])
    real, dry = dry_step(plan, 2, device="cpu"), dry_step(plan, 2)
    assert 0 <= real.peak.bytes - dry.peak.bytes <= 4 * 2 * len(list(learner_for(tmp_path).vae.parameters()))


def test_it_is_what_torch_counts_itself(tmp_path: Path) -> None:
    plan = plan_for(tmp_path, data={"input": "3x64x64"})
    document = plan.settings.model_dump(mode="json", exclude_none=True)
    measured = run_trial(Request(document, str(tmp_path / "c.toml"), 8, detailed=True))
    buffers = 8 * 64 * 64 * (32 + 16) * 4  # both sides of the last convolution in its kernel's layout, blocks of 16
    dry = dry_step(plan, 8).peak.bytes
    assert 0.995 * dry <= measured.tensors <= 1.005 * (dry + buffers)


@st.composite
def structures(draw: st.DrawFn) -> dict[str, str]:
    """The files of an encoder and a decoder with random layers between what changes the size."""
    width = draw(st.sampled_from([32, 64]))
    block = f"VAERB_{width}_{width}"
    codes = [block, f"VAEA_{width}", f"GN_32_{width}", "SiLU", f"C2d_{width}_{width}_3_1_1", "MaxP_1"]
    inside = st.lists(st.sampled_from(codes), max_size=3)
    encoder = [f"C2d_3_{width}_4_4", block, *draw(inside), f"C2d_{width}_4_1"]
    decoder = [f"C2d_2_{width}_1", *draw(inside), "UpS_4", f"C2d_{width}_3_3_1_1"]
    return {"e.json": json.dumps(encoder), "d.json": json.dumps(decoder)}


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).write_text(text)


def saved(tracker: Tracker, layer: str = "") -> int:
    """What forward passes leave for backward passes, of all layers or of one."""
    kept = (block for block in tracker.blocks if block.category == "activations")
    return sum(block.bytes for block in kept if block.layer.startswith(layer))


RANDOM = settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@RANDOM
@given(structures())
def test_parts_are_the_closed_form(tmp_path: Path, files: dict[str, str]) -> None:
    write(tmp_path, files)
    tracker = dry_step(plan_of(tmp_path, CASES["ema"] | CASES["accumulate"]), 2)
    learner = learner_for(tmp_path, ema={"decay": 0.9})
    learner.step(0, [samples()])
    weights = sum(p.nbytes for p in learner.vae.parameters())
    parts = held(tracker)
    assert parts["parameters"] == parts["ema"] == weights
    assert parts["gradients"] == weights  # of the first micro-batch
    moments = sum(t.nbytes for t in learner.optimization.tensors().values())
    health = sum(t.nbytes for t in learner.health.tensors().values())
    assert parts["state"] == pytest.approx(moments + health, abs=64)
    assert parts["samples"] == 2 * 2 * 3 * 32 * 32 * 4


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from(["adamw", "recomputed", "terms"]))
def test_the_peak_is_rising_and_convex_in_the_batch(tmp_path: Path, batch: int, more: int, name: str) -> None:
    plan = plan_of(tmp_path, CASES[name])
    low, middle, high = (dry_step(plan, n).peak.bytes for n in (batch, batch + more, batch + 2 * more))
    assert low < middle < high
    assert middle - low <= high - middle


@RANDOM
@given(structures(), st.sampled_from([Ways(), Ways(cuda=True, flash=True)]))
def test_recomputing_never_keeps_more(tmp_path: Path, files: dict[str, str], ways: Ways) -> None:
    write(tmp_path, files)
    plain, spare = (dry_step(plan_of(tmp_path, CASES[name]), 4, ways) for name in ("adamw", "recomputed"))
    assert saved(spare) < saved(plain)
    assert spare.peak.bytes <= plain.peak.bytes
    assert saved(spare, "encoder.1") < saved(plain, "encoder.1")


def test_layers_and_the_peak_have_their_place(tmp_path: Path) -> None:
    tracker = dry_step(plan_of(tmp_path, {"train": {"fuse": "off"}}), 4)
    assert (tracker.peak.stage, tracker.peak.layer) == ("backward", "decoder.3")
    assert tracker.peak.operation == "aten.convolution_backward.default"
    kept = by_layer(tracker.held_at(tracker.peak.event))
    assert {"encoder.0", "encoder.1", "bottleneck", "decoder.0", "decoder.2"} <= kept.keys()
    assert kept["decoder.2"] == 4 * 32 * 32 * 32 * 4  # the upsampled map
    assert not tracker.layers


def test_what_computes_as_one_is_followed_as_one(tmp_path: Path) -> None:
    fused, plain = (dry_step(plan_of(tmp_path, {"train": {"fuse": each}}), 4) for each in ("auto", "off"))
    kept = by_layer(fused.held_at(fused.peak.event))
    assert "decoder.2" not in kept  # its map is never made
    assert fused.peak.bytes < plain.peak.bytes


@pytest.mark.parametrize("mode", ["infer", "encode", "decode"])
def test_passes_keep_nothing(tmp_path: Path, mode: Any) -> None:
    plan = plan_of(tmp_path, {})
    one, four = dry_pass(plan, mode, 1), dry_pass(plan, mode, 4)
    assert held(four).keys() == {"parameters", "samples", "temporaries"}
    assert held(one)["temporaries"] < held(four)["temporaries"] <= 4 * held(one)["temporaries"]
    assert four.peak.bytes < dry_step(plan, 4).peak.bytes


def test_storages_count_once_and_until_they_are_freed() -> None:
    with Tracker() as tracker:
        x = torch.empty(256, device="meta")  # 1 KiB
        views = [x[:4], x.view(16, 16), x.detach()]
        x.add_(1)
        assert tracker.held == 1024
        y = x + 1
        assert tracker.held == 2048
        del x
        assert tracker.held == 2048  # the views hold it
        views.clear()
        assert tracker.held == 1024
        del y
    assert (tracker.held, tracker.peak.bytes, tracker.live) == (0, 2048, {})
    assert tracker.events == [0, 1, ~0, ~1]


def test_extras_come_and_go_or_stay() -> None:
    def extras(operation: Any, *_: Any) -> list[Extra]:
        return [Extra(100), Extra(7, "own", stays=True)] if operation is torch.ops.aten.add.Tensor else []

    x = torch.zeros(4, device="meta")
    with Tracker(extras=extras) as tracker:
        x = x + 1
    assert tracker.held == 16 + 7
    assert tracker.peak.bytes == 16 + 100
    assert tracker.held_at(tracker.peak.event)[-1].kind == "workspace"


class Looking(nn.Module):
    """A layer whose way depends on numbers."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x


def test_a_layer_that_looks_at_numbers_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nn.Upsample, "forward", Looking.forward)
    with pytest.raises(UsageError, match=r"decoder\.2: cannot be followed without computing") as info:
        dry_step(plan_of(tmp_path, {"train": {"fuse": "off"}}), 1)
    assert "--probe always" in info.value.problems[0].hint


def test_torch_is_as_it_was_afterwards(tmp_path: Path) -> None:
    before = (torch.autocast, torch.amp.autocast, torch.clear_autocast_cache, torch.autograd._engine_run_backward)
    dry_step(plan_of(tmp_path, {"train": {"precision": "bf16"}}), 1, Ways(cuda=True))
    after = (torch.autocast, torch.amp.autocast, torch.clear_autocast_cache, torch.autograd._engine_run_backward)
    assert after == before
    assert not torch.is_autocast_enabled("cuda")


# ------------------------------------------------------------------------------------------------- as CUDA does it


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(*shape, device="meta", dtype=dtype)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_autocast_casts_as_cuda_does(half: torch.dtype) -> None:
    x, w = meta(2, 4, 8, 8), meta(4, 4, 3, 3)
    with on_meta(CudaSemantics()), torch.autocast("meta", half):
        y = F.conv2d(x, w)
        assert y.dtype == (y.flatten(2) @ y.flatten(2).mT).dtype == half
        assert F.silu(y).dtype == half
        assert F.group_norm(y, 2).dtype == F.interpolate(y, scale_factor=2.0).dtype == torch.float32
        assert y.sum().dtype == y.softmax(1).dtype == y.exp().dtype == torch.float32
        assert torch.cat([y, y.float()]).dtype == torch.float32
        with torch.autocast("meta", enabled=False):
            assert F.conv2d(x, w).dtype == torch.float32
        assert F.conv2d(x, w).dtype == half
    assert F.conv2d(x, w).dtype == torch.float32


def test_a_weight_is_cast_once_in_an_autocast() -> None:
    weight, x = nn.Parameter(meta(4, 4)), meta(8, 4)
    with on_meta(CudaSemantics()), Tracker() as tracker, torch.autocast("meta", torch.bfloat16):
        kept = [x @ weight, x @ weight]
        copies = [block for block in tracker.blocks if block.operation.startswith("aten._to_copy")]
    assert [block.bytes for block in copies] == [8 * 4 * 2, 4 * 4 * 2, 8 * 4 * 2]
    assert len(kept) == 2


def test_recomputed_layers_are_cast_as_well(tmp_path: Path) -> None:
    table = {"precision": "bf16", "activation_checkpointing": "blocks"}
    tracker = dry_step(plan_of(tmp_path, {"train": table}), 4, Ways(cuda=True, flash=True))
    again = [b for b in tracker.blocks if b.stage == "backward" and b.operation == "aten.convolution.default"]
    assert {block.bytes for block in again} == {4 * 32 * 8 * 8 * 2}  # of the blocks at 8 x 8, in two bytes
    assert {block.layer for block in again} == {"encoder.1", "decoder.1"}


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_adversarial_training_is_followed_as_well(tmp_path: Path, precision: str) -> None:
    tables = {**CASES["adversarial"], "train": {"precision": precision, "layout": "channels-last"}}
    tracker = dry_step(plan_of(tmp_path, tables), 4, Ways(cuda=True, flash=True))
    assert {b.layer for b in tracker.blocks} >= {"discriminator.0", "discriminator.2", "encoder.0"}


@pytest.mark.parametrize(("half", "operation"), [(True, "flash"), (False, "efficient")])
def test_attention_never_holds_all_pairs(half: bool, operation: str) -> None:
    q = meta(2, 1, 256, 32, dtype=torch.bfloat16 if half else torch.float32).requires_grad_()
    with on_meta(CudaSemantics()), Tracker() as tracker:
        F.scaled_dot_product_attention(q, q, q).sum().backward()
    assert any(operation in block.operation for block in tracker.blocks)
    assert max(block.bytes for block in tracker.blocks) < 2 * 256 * 256 * q.element_size()


def test_dropout_keeps_a_byte() -> None:
    x = meta(1024).requires_grad_()
    with on_meta(CudaSemantics()), Tracker() as tracker:
        y = F.dropout(x, 0.5)
        assert tracker.held == 4096 + 1024
    assert y.shape == x.shape


def test_hooks_tell_the_layer_of_both_passes() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.SiLU()).to("meta")
    tracker = Tracker()
    follow_layers(tracker, {"a": net[0], "b": net[1]})
    with tracker:
        net(meta(2, 4).requires_grad_()).sum().backward()
    assert {(b.stage, b.layer) for b in tracker.blocks} >= {("backward", "a"), ("backward", "b")}
    assert {b.layer for b in tracker.blocks if "silu" in b.operation} == {"b"}
