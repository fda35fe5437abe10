"""What only a GPU can show; skipped where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from learners import plan_for, samples, state_of

from flexvae_cli.engine.build import build_vae
from flexvae_cli.engine.learner import Learner
from flexvae_cli.engine.model import in_use
from flexvae_cli.engine.parts import restore_parts
from flexvae_cli.engine.precision import set_determinism

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

PRECISIONS = ["fp32", "tf32", "bf16", "fp16"]


@pytest.fixture(autouse=True)
def deterministic():
    set_determinism(True, torch.device("cuda"))
    yield
    set_determinism(False, torch.device("cuda"))
    torch.use_deterministic_algorithms(False)


def learner_on(folder: Path, **tables) -> Learner:
    plan = plan_for(folder, **tables)
    torch.manual_seed(0)
    return Learner(plan, build_vae(plan.net).to("cuda"), 100)


def steps(learner: Learner, numbers) -> None:
    for step in numbers:
        learner.step(step, [learner.prepare(x) for x in samples(6).split(3)])


@pytest.mark.parametrize("fuse", ["auto", "on"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_step_lowers_the_loss_and_never_waits_for_the_device(tmp_path, precision, fuse):
    tables = {"ema": {"decay": 0.9}, "loss": {"ssim_metrics": True}}
    learner = learner_on(tmp_path, train={"precision": precision, "fuse": fuse}, **tables)
    steps(learner, range(2))
    micro_batches = [learner.prepare(x) for x in samples(6).split(3)]
    first = learner.step(2, micro_batches)
    torch.cuda.set_sync_debug_mode("error")
    try:
        values = [learner.step(step, micro_batches) for step in range(3, 40)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert values[-1]["loss"].item() < first["loss"].item()
    assert {p.dtype for p in learner.vae.parameters()} == {torch.float32}
    assert not learner.health.skipped_since()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_resumed_run_is_bit_identical_with_deterministic_algorithms(tmp_path, precision):
    tables = {"train": {"precision": precision}, "ema": {"decay": 0.9}}
    whole, first, second = (learner_on(tmp_path, **tables) for _ in range(3))
    steps(whole, range(6))
    steps(first, range(3))
    second.vae.load_state_dict(first.weights())
    restore_parts(second.parts(), {k: v.cpu() for k, v in first.tensors().items()}, Path("x"))
    steps(second, range(3, 6))
    wanted, found = state_of(whole), state_of(second)
    assert not [name for name in wanted if not torch.equal(wanted[name], found[name])]


def test_recomputing_and_norms_in_half_precision_save_memory(tmp_path):
    def peak(**train) -> int:
        learner = learner_on(tmp_path, train={"precision": "bf16", **train})
        x = learner.prepare(samples(64))
        learner.step(0, [x])
        torch.cuda.reset_peak_memory_stats()
        learner.step(1, [x])
        return torch.cuda.max_memory_allocated()

    plain = peak()
    assert peak(norm_dtype="input") < plain
    assert peak(activation_checkpointing="blocks") < plain


def test_bf16_on_a_gpu_is_channels_last_by_itself(tmp_path):
    learner = learner_on(tmp_path)
    assert learner.precision.name == "bf16"
    assert learner.vae.encoder[0].weight.is_contiguous(memory_format=torch.channels_last)
    used = in_use(learner.vae.to(memory_format=torch.contiguous_format), dtype=torch.bfloat16)
    assert used.encoder[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert in_use(used).encoder[0].weight.is_contiguous()
