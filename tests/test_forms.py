"""Precision, layout, recomputation: the same net, computed in another way."""

from __future__ import annotations

import pytest
import torch
from learners import learner_for, samples
from torch import nn

from flexvae_cli.engine.forms import take_form
from flexvae_cli.engine.fusing import fused_in
from flexvae_cli.engine.precision import Precision
from flexvae_cli.engine.vae import VAE

CPU = torch.device("cpu")


def gradients(learner) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in learner.vae.named_parameters()}


@pytest.mark.parametrize("form", [{"activation_checkpointing": "blocks"}, {"activation_checkpointing": ["encoder.1"]}])
def test_recomputing_changes_no_number(tmp_path, form):
    plain, other = learner_for(tmp_path), learner_for(tmp_path, train=form)
    assert plain.vae.state_dict().keys() == other.vae.state_dict().keys()
    for learner in (plain, other):
        learner.step(0, samples().split(3))
    assert all(torch.equal(a, b) for a, b in zip(gradients(plain).values(), gradients(other).values(), strict=True))


def test_blocks_are_the_entries_that_have_parts_and_only_they_are_computed_twice(tmp_path):
    learner = learner_for(tmp_path, train={"activation_checkpointing": "blocks"})
    passes = {"conv": 0, "block": 0}
    learner.vae.encoder[0].register_forward_hook(lambda *_: passes.__setitem__("conv", passes["conv"] + 1))
    inner = learner.vae.encoder[1].conv_1
    inner.register_forward_hook(lambda *_: passes.__setitem__("block", passes["block"] + 1))
    learner.step(0, [samples(1)])
    assert passes == {"conv": 1, "block": 2}


@pytest.mark.parametrize("fused", ["off", "on"])
def test_a_list_that_is_recomputed_is_computed_twice_whether_fused_or_not(fused):
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Upsample(scale_factor=2), nn.Conv2d(8, 8, 3, padding=1))
    vae = VAE(nn.Sequential(inner, nn.Conv2d(8, 2, 2, 2)), nn.Identity(), nn.Sequential())
    take_form(vae, settings(activation_checkpointing="blocks", fuse=fused), Precision("fp32", CPU))
    names = ("encoder.0.1", "encoder.0.2")
    assert [each.names for each in fused_in(vae)] == ([names] if fused == "on" else [])
    passes = {"in the list": 0, "behind it": 0}
    for name, module in {"in the list": inner[0], "behind it": vae.encoder[1]}.items():
        module.register_forward_hook(lambda *_, name=name: passes.__setitem__(name, passes[name] + 1))
    vae.encoder(samples(2)).square().sum().backward()
    assert passes == {"in the list": 2, "behind it": 1}
    assert all(p.grad is not None for p in vae.encoder.parameters())


def settings(**train):
    from flexvae_cli.config.settings import TrainTable

    return TrainTable(run_dir="x", max_steps=1, **train)


def test_running_statistics_count_every_batch_once_when_activations_are_recomputed():
    """The classical trap: the second forward pass of a checkpointed block updates batch norm again."""

    def statistics(mode):
        torch.manual_seed(0)
        block = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        vae = VAE(nn.Sequential(block), nn.Identity(), nn.Sequential())
        take_form(vae, settings(activation_checkpointing=mode), Precision("fp32", CPU))
        vae.train().encoder(samples()).square().sum().backward()
        return block[1].running_mean.clone(), int(block[1].num_batches_tracked)

    (plain, once), (recomputed, also_once) = statistics("off"), statistics("blocks")
    assert (once, also_once) == (1, 1)
    assert torch.equal(plain, recomputed)


@pytest.mark.parametrize("norm_dtype", ["fp32", "input"])
def test_half_precision_is_of_the_arithmetic_alone(tmp_path, norm_dtype):
    """Weights, gradients, optimizer state, posterior, reconstruction and losses stay in fp32."""
    learner = learner_for(tmp_path, train={"precision": "bf16", "norm_dtype": norm_dtype}, ema={"decay": 0.9})
    seen = {}
    block = learner.vae.encoder[1]
    for name, module in {"conv": block.conv_1, "norm": block.norm_2, "bottleneck": learner.vae.bottleneck}.items():
        module.register_forward_hook(lambda m, i, o, name=name: seen.__setitem__(name, (i[0].dtype, o)))
    values = learner.step(0, [samples()])
    assert seen["conv"][1].dtype == torch.bfloat16
    assert seen["norm"][1].dtype == (torch.float32 if norm_dtype == "fp32" else torch.bfloat16)
    assert seen["bottleneck"][0] == torch.float32
    assert seen["bottleneck"][1].z.dtype == torch.float32
    assert {v.dtype for v in values.values()} == {torch.float32}
    assert {p.dtype for p in learner.vae.parameters()} == {p.grad.dtype for p in learner.vae.parameters()}
    assert {v.dtype for v in learner.tensors().values() if v.is_floating_point()} == {torch.float32}
    reference = learner_for(tmp_path)
    reference.step(0, [samples()])
    a, b = (torch.cat([g.flatten() for g in gradients(each).values()]) for each in (learner, reference))
    assert torch.nn.functional.cosine_similarity(a, b, dim=0) > 0.99
    assert not torch.equal(a, b)


def test_small_updates_are_not_lost_in_half_precision(tmp_path):
    """Weights that are themselves cast to bf16 stand still under a small learning rate: the masters must not."""
    learner = learner_for(tmp_path, train={"precision": "bf16"}, optimizer={"name": "sgd", "lr": 1e-6})
    weight = learner.vae.decoder[0].weight
    before = weight.detach().clone()
    for step in range(4):
        learner.step(step, [samples()])
    moved = (weight.detach() - before).abs().max()
    assert 0 < moved < before.abs().max() * 2**-9


def test_norms_compute_the_same_in_either_type():
    x = samples(2).to(torch.bfloat16)
    x = torch.cat([x] * 2, dim=1)[:, :4]  # (2, 4, 16, 16)
    for norm in (nn.GroupNorm(2, 4), nn.BatchNorm2d(4), nn.InstanceNorm2d(4, affine=True)):
        for p in norm.parameters():
            nn.init.normal_(p, 1.0, 0.1)
        reference = norm(x.float())
        for form in ("fp32", "input"):
            vae = VAE(nn.Sequential(norm), nn.Identity(), nn.Sequential())
            plain = norm.forward
            take_form(vae, settings(norm_dtype=form), Precision("bf16", CPU))
            with torch.autocast("cpu", torch.bfloat16):
                found = norm(x)
            norm.forward = plain
            assert found.dtype == (torch.float32 if form == "fp32" else torch.bfloat16)
            torch.testing.assert_close(found.float(), reference, rtol=2e-2, atol=2e-2)


def test_channels_last_is_the_same_net_in_another_layout(tmp_path):
    plain, last = learner_for(tmp_path), learner_for(tmp_path, train={"layout": "channels-last"})
    x = last.prepare(samples())
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert last.vae.encoder[1].conv_1.weight.is_contiguous(memory_format=torch.channels_last)
    for learner in (plain, last):
        learner.step(0, [learner.prepare(samples())])
    for a, b in zip(gradients(plain).values(), gradients(last).values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_the_probe_of_a_device_draws_no_random_numbers():
    torch.manual_seed(1)
    wanted = torch.rand(1)
    torch.manual_seed(1)
    Precision("bf16", CPU)
    assert torch.equal(torch.rand(1), wanted)
