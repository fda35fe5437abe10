"""The training step: what it depends on, and what it does not."""

from __future__ import annotations

import copy

import pytest
import torch

from flexvae_cli.config.settings import OptimizerTable
from flexvae_cli.engine.build import build_vae
from flexvae_cli.engine.losses.total import TotalLoss
from flexvae_cli.engine.optimizer import make_optimizer, optimizer_tensors, restore_optimizer
from flexvae_cli.engine.step import training_step
from flexvae_cli.errors import ModelError
from flexvae_cli.net import make_net
from flexvae_cli.objective import Term
from flexvae_cli.plugins import installed
from flexvae_cli.structure import bind_code, parse_structure

REGISTRY = installed().registry


def tiny_vae(bottleneck: str = "KL"):
    latent = 4 if bottleneck == "KL" else 2
    encoder = parse_structure(["C2d_3_32_4_4", "VAERB_32_32", f"C2d_32_{latent}_1"], REGISTRY, "e")
    decoder = parse_structure(["C2d_2_32_1", {"residual": ["VAERB_32_32"]}, "UpS_4", "C2d_32_3_3_1_1"], REGISTRY, "d")
    torch.manual_seed(0)
    return build_vae(make_net(encoder, bottleneck, decoder, (3, 16, 16), REGISTRY, None))


def total(*names: str) -> TotalLoss:
    return TotalLoss([Term(n, bind_code(n, "loss", REGISTRY, "x", [], {}), 1.0) for n in names])


def one_step(vae, parts, loss=None, clip_norm=0.0, step=0):
    optimizer = make_optimizer(vae, OptimizerTable(lr=1e-2))
    values = training_step(vae, loss or total("mse"), optimizer, parts, seed=3, step=step, clip_norm=clip_norm)
    return values, optimizer


def samples(count: int = 5) -> torch.Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(5)) * 2 - 1


@pytest.mark.parametrize("sizes", [[5], [3, 2], [2, 2, 1], [1] * 5])
def test_the_gradient_is_that_of_the_whole_batch_however_it_is_cut(sizes):
    """Without noise: a last, smaller micro-batch weighs as many samples as it has."""
    vae = tiny_vae("None")
    reference = copy.deepcopy(vae)
    loss = torch.nn.functional.mse_loss(reference(samples()).output, samples())
    loss.backward()
    values, _ = one_step(vae, samples().split(sizes))
    assert values["loss"].item() == pytest.approx(loss.item(), rel=1e-5)
    for mine, theirs in zip(vae.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-7)


def test_a_step_depends_on_seed_and_step_not_on_the_generators():
    results = []
    for noise in (1, 2):
        vae = tiny_vae()
        torch.manual_seed(noise)
        one_step(vae, samples().split(3), total("mse", "kld"))
        results.append([p.detach().clone() for p in vae.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    other = tiny_vae()
    one_step(other, samples().split(3), total("mse", "kld"), step=1)
    assert not all(torch.equal(a, b) for a, b in zip(results[0], other.parameters(), strict=True))


def test_micro_batches_draw_different_noise():
    vae = tiny_vae()
    drawn = []
    vae.bottleneck.register_forward_hook(lambda _, inputs, out: drawn.append((out.z - out.posterior.mean).detach()))
    x = samples(1)
    one_step(vae, [x, x])
    assert not torch.equal(drawn[0], drawn[1])


def test_the_gradient_is_clipped_and_its_norm_before_that_is_told():
    vae = tiny_vae("None")
    values, _ = one_step(vae, [samples()], clip_norm=1e-3)
    norm = torch.stack([p.grad.norm() for p in vae.parameters()]).norm().item()
    assert norm == pytest.approx(1e-3, rel=1e-3)
    assert values["gradient_norm"].item() > 1e-2


def test_the_step_does_not_wait_for_the_device(monkeypatch):
    def forbidden(*_):
        raise AssertionError("a host synchronisation in the training step")

    vae = tiny_vae()
    optimizer = make_optimizer(vae, OptimizerTable())
    for name in ("item", "tolist", "__bool__", "__float__", "__int__"):
        monkeypatch.setattr(torch.Tensor, name, forbidden)
    training_step(vae, total("mse", "kld", "sparse"), optimizer, [samples()], seed=0, step=0, clip_norm=1.0)


def test_the_optimizer_s_state_goes_through_names(tmp_path):
    vae = tiny_vae()
    _, optimizer = one_step(vae, [samples()])
    tensors = {k: v.clone() for k, v in optimizer_tensors(optimizer, vae).items()}
    assert "encoder.0.weight.exp_avg" in tensors
    again = make_optimizer(vae, OptimizerTable(lr=1e-2))
    restore_optimizer(again, vae, tensors, tmp_path)
    restored = optimizer_tensors(again, vae)
    assert restored.keys() == tensors.keys()
    assert all(torch.equal(restored[k], tensors[k]) and restored[k].dtype == tensors[k].dtype for k in tensors)
    with pytest.raises(ModelError, match="does not fit"):
        restore_optimizer(again, vae, {"encoder.9.weight.exp_avg": torch.zeros(1)}, tmp_path)
    with pytest.raises(ModelError, match="does not fit"):
        restore_optimizer(again, vae, {**tensors, "encoder.0.weight.exp_avg": torch.zeros(3)}, tmp_path)


def test_evaluation_takes_the_mean_and_training_draws():
    vae = tiny_vae()
    x = samples(1)
    with torch.no_grad():
        assert not torch.equal(vae(x).encoded.z, vae(x).encoded.z)
        vae.eval()
        encoded = vae(x).encoded
    assert torch.equal(encoded.z, encoded.posterior.mean)
    assert encoded.posterior.log_variance.min() >= -30
