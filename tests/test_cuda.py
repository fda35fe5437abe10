"""What only a GPU can show; skipped where there is none."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from learners import plan_for, samples, state_of
from torch import nn

from flexvae_cli.engine.build import build_vae
from flexvae_cli.engine.data.loader import training_batches
from flexvae_cli.engine.data.sampler import MicroBatches
from flexvae_cli.engine.fusing.norm_silu import group_norm_silu, triton_kernels
from flexvae_cli.engine.learner import Learner
from flexvae_cli.engine.model import in_use
from flexvae_cli.engine.parts import restore_parts
from flexvae_cli.engine.precision import set_determinism
from flexvae_cli.engine.source import open_source

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


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_norm_and_silu_in_triton_are_the_plain_layers(dtype, last):
    device = torch.device("cuda", 0)
    kernels = triton_kernels(device)
    if kernels is None:
        pytest.skip("needs Triton")
    torch.manual_seed(0)
    for axes, groups, channels in itertools.product((1, 2, 3), (1, 4, 32), (32, 96)):
        norm = nn.GroupNorm(groups, channels)
        x = torch.randn(3, channels, *range(11, 11 + axes)).to(device, dtype)
        x = x.movedim(1, -1).contiguous().movedim(-1, 1) if last else x
        inputs = [x.requires_grad_(), *(p.detach().to(device).requires_grad_() for p in norm.parameters())]
        out = kernels.GroupNormSilu.apply(*inputs, groups, norm.eps, True)
        toward = torch.randn_like(out)
        found = torch.autograd.grad(out, inputs, toward)
        again = kernels.GroupNormSilu.apply(*inputs, groups, norm.eps, True)
        assert all(map(torch.equal, found, torch.autograd.grad(again, inputs, toward)))  # to the bit
        wide = [each.detach().double().requires_grad_() for each in inputs]
        wanted = nn.functional.silu(nn.functional.group_norm(wide[0], groups, *wide[1:], norm.eps))
        gradients = torch.autograd.grad(wanted, wide, toward.double())
        for a, b in zip((out, *found), (wanted, *gradients), strict=True):
            off = (a.double() - b).abs().max() / b.abs().max()
            assert off.item() < {torch.float32: 1e-4, torch.bfloat16: 1e-2, torch.float16: 2e-3}[dtype]


def test_more_elements_than_32_bits_count_are_normed():
    device = torch.device("cuda", 0)
    kernels = triton_kernels(device)
    if kernels is None or torch.cuda.mem_get_info()[0] < 24 << 30:
        pytest.skip("needs Triton and 24 GiB")
    x = torch.empty(1, 4, (1 << 29) + 64, device=device, dtype=torch.bfloat16).normal_()
    norm = nn.GroupNorm(2, 4, device=device)
    with torch.no_grad():
        out = group_norm_silu(x, norm, wide=True)
        half = x[:, 2:].double()
        wanted = nn.functional.silu((half[..., -4096:] - half.mean()) / half.std(correction=0))
    torch.testing.assert_close(out[:, 2:, -4096:].double(), wanted, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("mode", [True, "reduce-overhead"])
def test_a_compiled_net_trains_as_the_plain_one(tmp_path, mode):
    plain, compiled = (learner_on(tmp_path, train={"precision": "fp32", "compile": each}) for each in (False, mode))
    for learner in (plain, compiled):
        steps(learner, range(6))
    wanted = dict(plain.vae.named_parameters())
    for name, parameter in compiled.vae.named_parameters():
        torch.testing.assert_close(parameter, wanted[name], rtol=1e-2, atol=1e-3)


def test_batches_come_from_page_locked_memory(tmp_path):
    plan = plan_for(tmp_path)
    images = open_source(plan.settings.data, 0, [phase.shapes for phase in plan.phases]).training
    sampler = MicroBatches(len(images), 4, 1, 0, 0, 2)
    assert all(batch.x.is_pinned() for batch in training_batches(images, sampler, workers=0, pin_memory=True))


def test_bf16_on_a_gpu_is_channels_last_by_itself(tmp_path):
    learner = learner_on(tmp_path)
    assert learner.precision.name == "bf16"
    assert learner.vae.encoder[0].weight.is_contiguous(memory_format=torch.channels_last)
    used = in_use(learner.vae.to(memory_format=torch.contiguous_format), dtype=torch.bfloat16)
    assert used.encoder[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert in_use(used).encoder[0].weight.is_contiguous()
