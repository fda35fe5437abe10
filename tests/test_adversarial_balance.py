"""The adaptive weight: where it is measured, and that it is what the formula says."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from flexvae_cli.engine.adversarial.balance import Known, gradient_ratio, last_layer
from flexvae_cli.engine.bottlenecks.none import Plain
from flexvae_cli.engine.vae import VAE
from flexvae_cli.errors import UsageError


def tiny_vae(*, logits: bool = False) -> VAE:
    torch.manual_seed(0)
    decoder = nn.Sequential(nn.Conv2d(4, 8, 1), nn.SiLU(), nn.Upsample(scale_factor=2), nn.Conv2d(8, 3, 3, padding=1))
    return VAE(nn.Conv2d(3, 4, 2, 2), Plain(), decoder, logits=logits)


def samples() -> torch.Tensor:
    return torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1


def losses(batch):
    """Something to reconstruct by, and something that stands for a discriminator."""
    return F.mse_loss(batch.output, batch.x) + batch.encoded.z.square().mean(), batch.reconstruction.pow(3).sum().cos()


def measured(vae, *, factor: float = 1.0, **options):
    batch = vae(samples())
    other, adversarial = losses(batch)
    (gradient,) = torch.autograd.grad(adversarial * factor, batch.reconstruction, retain_graph=True)
    return gradient_ratio(batch, other, gradient, last_layer(vae), **options)


@pytest.mark.parametrize("logits", [False, True])
@pytest.mark.parametrize("factor", [1.0, 1e-6, 1e4])
def test_the_ratio_is_the_formula_s(logits, factor):
    vae = tiny_vae(logits=logits)
    batch = vae(samples())
    other, adversarial = losses(batch)
    last = vae.decoder[3].weight
    above, below = (torch.autograd.grad(t, last, retain_graph=True)[0].norm() for t in (other, adversarial * factor))
    wanted = (above / (below + 1e-4)).item()
    assert measured(vae, factor=factor).item() == pytest.approx(wanted, rel=1e-3)


def test_the_ratio_is_clamped_and_has_no_graph():
    ratio = measured(tiny_vae())
    assert not ratio.requires_grad
    assert ratio > 1e-3
    assert measured(tiny_vae(), most=1e-3).item() == pytest.approx(1e-3)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_a_ratio_that_is_not_finite_is_zero(wrong):
    assert measured(tiny_vae(), factor=wrong).item() == 0.0
    vae = tiny_vae()
    batch = vae(samples())
    found = gradient_ratio(batch, batch.output.sum() * wrong, torch.ones_like(batch.x), last_layer(vae))
    assert found.item() == 0.0


def test_losses_that_do_not_look_at_the_reconstruction_leave_nothing_to_balance():
    vae = tiny_vae()
    batch = vae(samples())
    found = gradient_ratio(batch, batch.encoded.z.square().mean(), torch.ones_like(batch.x), last_layer(vae))
    assert found.item() == 0.0


def test_the_graph_is_kept_for_the_step_itself():
    vae = tiny_vae()
    batch = vae(samples())
    other, adversarial = losses(batch)
    gradient_ratio(batch, other, torch.ones_like(batch.x), last_layer(vae))
    assert all(p.grad is None for p in vae.parameters())
    (other + adversarial).backward()
    assert all(p.grad is not None for p in vae.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_small_gradients_do_not_vanish_and_large_ones_do_not_overflow(dtype):
    vae = tiny_vae()
    exact, found = {}, {}
    for factor in (1e-6, 1.0, 1e6):
        exact[factor] = measured(vae, factor=factor)
        with torch.autocast("cpu", dtype):
            batch = vae(samples())
        other, _ = losses(batch)
        (gradient,) = torch.autograd.grad(losses(batch)[1] * factor, batch.reconstruction)
        found[factor] = gradient_ratio(batch, other * 1e-6, gradient, last_layer(vae)) * 1e6
    for factor, value in found.items():
        assert value.item() == pytest.approx(exact[factor].item(), rel=0.1)


def test_the_last_layer_is_the_last_that_has_a_matrix_and_is_trained():
    vae = tiny_vae()
    vae.decoder.append(nn.GroupNorm(1, 3))
    assert last_layer(vae) is vae.decoder[3].weight
    vae.decoder[3].weight.requires_grad_(False)
    assert last_layer(vae) is vae.decoder[0].weight
    assert last_layer(vae, frozen=["decoder.0.weight"]) is vae.decoder[3].weight


def test_a_decoder_without_such_a_layer_is_refused():
    vae = tiny_vae()
    vae.decoder.requires_grad_(False)
    with pytest.raises(UsageError, match=r"no layer of the decoder is trained.*\n.*adversarial\.adaptive = false"):
        last_layer(vae)
    with pytest.raises(UsageError, match=r"adversarial\.adaptive"):
        last_layer(tiny_vae(), frozen=["decoder.0.weight", "decoder.3.weight"])
    vae.decoder = nn.Sequential(nn.Upsample(scale_factor=2), nn.GroupNorm(1, 4))
    with pytest.raises(UsageError):
        last_layer(vae)


def test_a_known_gradient_is_passed_on():
    x = torch.randn(4, requires_grad=True)
    (2.5 * Known.apply(x * 3, torch.tensor(7.0), torch.arange(4.0))).backward()
    assert torch.equal(x.grad, 2.5 * 3 * torch.arange(4.0))
