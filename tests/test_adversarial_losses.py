"""The two players' losses and the discriminator's regularizations, against their formulas written out."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from flexvae_cli.config.settings import AdversarialTable
from flexvae_cli.engine.adversarial.losses import LOSSES
from flexvae_cli.engine.adversarial.regularization import LeCam, r1_penalty
from flexvae_layers_core.blocks import AttentionBlock

SHAPE = (3, 1, 2, 4)


def logits(seed: int) -> torch.Tensor:
    return 2 * torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


FORMULAS = {
    "hinge": (lambda f: -f, lambda r: max(0, 1 - r), lambda f: max(0, 1 + f)),
    "non-saturating": (lambda f: softplus(-f), lambda r: softplus(-r), softplus),
    "least-squares": (lambda f: (f - 1) ** 2 / 2, lambda r: (r - 1) ** 2, lambda f: f**2),
}


def mean(of, tensor: torch.Tensor) -> float:
    return sum(of(x) for x in tensor.flatten().tolist()) / tensor.numel()


@pytest.mark.parametrize("name", FORMULAS)
def test_losses_by_hand(name):
    generator, of_real, of_fake = FORMULAS[name]
    real, fake = logits(1), logits(2)
    assert LOSSES[name].generator(fake).item() == pytest.approx(mean(generator, fake), rel=1e-5)
    wanted = (mean(of_real, real) + mean(of_fake, fake)) / 2
    assert LOSSES[name].discriminator(real, fake).item() == pytest.approx(wanted, rel=1e-5)


def test_every_loss_of_the_config_is_there():
    assert set(FORMULAS) == set(LOSSES) == set(AdversarialTable.model_fields["loss"].annotation.__args__)


@pytest.mark.parametrize("name", FORMULAS)
def test_the_two_players_pull_the_logits_of_reconstructions_apart(name):
    """A swap of samples and reconstructions, on either side, turns one of these signs."""
    real, fake = torch.zeros(SHAPE, requires_grad=True), torch.zeros(SHAPE, requires_grad=True)
    of_real, of_fake = torch.autograd.grad(LOSSES[name].discriminator(real, fake), [real, fake])
    (of_generator,) = torch.autograd.grad(LOSSES[name].generator(fake), fake)
    assert (of_real < 0).all()  # the discriminator raises samples,
    assert (of_fake >= 0).all()  # lowers reconstructions (least squares has them at 0 already),
    assert (of_fake > 0).all() or name == "least-squares"
    assert (of_generator < 0).all()  # and the autoencoder raises them


def critic(*, attention: bool = False) -> nn.Sequential:
    torch.manual_seed(3)
    middle = AttentionBlock(32) if attention else nn.GroupNorm(8, 32)
    return nn.Sequential(nn.Conv2d(3, 32, 4, 2, 1), middle, nn.SiLU(), nn.Conv2d(32, 2, 3))


def samples(count: int = 3) -> torch.Tensor:
    return torch.rand(count, 3, 10, 10, generator=torch.Generator().manual_seed(4)) * 2 - 1


@pytest.mark.parametrize("attention", [False, True])
def test_r1_is_half_the_mean_squared_norm_of_the_jacobian(attention):
    """For each sample by itself; attention's fast kernels could not be differentiated twice."""
    net, x = critic(attention=attention), samples()
    norms = [
        torch.autograd.functional.jacobian(lambda y: net(y).mean(), one[None]).square().sum() for one in x.unbind()
    ]
    penalty = r1_penalty(net, x)
    assert penalty.item() == pytest.approx(0.5 * sum(n.item() for n in norms) / 3, rel=1e-4)
    penalty.backward()
    assert net[0].weight.grad.norm() > 0
    assert x.grad is None
    assert not x.requires_grad


def test_r1_has_the_gradient_by_the_weights_that_finite_differences_have():
    net, x = critic().double(), samples()
    x.data = x.data.double()
    weight = net[0].weight

    def penalty() -> torch.Tensor:
        y = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(net(y).flatten(1).mean(1).sum(), y, create_graph=True)
        return 0.5 * gradient.square().sum() / len(y)

    torch.manual_seed(0)
    direction = torch.randn_like(weight)
    with torch.no_grad():
        weight += 1e-4 * direction
    up = penalty().item()
    with torch.no_grad():
        weight -= 2e-4 * direction
    down = penalty().item()
    with torch.no_grad():
        weight += 1e-4 * direction
    r1_penalty(net.float(), x).backward()
    assert (net[0].weight.grad * direction).sum().item() == pytest.approx((up - down) / 2e-4, rel=1e-3)


def test_r1_is_computed_in_fp32_under_autocast():
    net, x = critic(), samples()
    with torch.autocast("cpu", torch.bfloat16):
        inside = r1_penalty(net, x)
    assert torch.equal(inside, r1_penalty(net, x))


def test_lecam_by_hand_over_steps():
    lecam = LeCam()
    mass = sum_real = sum_fake = 0.0
    for step in range(5):
        real, fake = logits(2 * step) + 1, logits(2 * step + 1) - 1
        mean_real, mean_fake = (sum_real / mass, sum_fake / mass) if mass else (0.0, 0.0)
        wanted = mean(lambda r, m=mean_fake: max(0, r - m) ** 2, real)
        wanted += mean(lambda f, m=mean_real: max(0, m - f) ** 2, fake)
        assert lecam(real, fake).item() == pytest.approx(wanted, rel=1e-4)
        lecam.update(real.mean(), fake.mean())
        mass, sum_real, sum_fake = (
            0.99 * old + 0.01 * new
            for old, new in ((mass, 1.0), (sum_real, real.mean().item()), (sum_fake, fake.mean().item()))
        )
    assert lecam.means[0].item() == pytest.approx(sum_real / mass, rel=1e-4)
    assert lecam.means[1].item() == pytest.approx(sum_fake / mass, rel=1e-4)


def test_the_first_step_s_means_count_in_full():
    lecam = LeCam()
    lecam.update(torch.tensor(3.0), torch.tensor(-2.0))
    assert [m.item() for m in lecam.means] == pytest.approx([3.0, -2.0])


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_lecam_passes_over_what_is_not_finite(wrong):
    lecam = LeCam()
    lecam.update(torch.tensor(3.0), torch.tensor(-2.0))
    before = {name: t.clone() for name, t in lecam.tensors().items()}
    lecam.update(torch.tensor(1.0), torch.tensor(wrong))
    assert all(torch.equal(before[name], t) for name, t in lecam.tensors().items())


def test_lecam_s_state_goes_through_names():
    lecam, again = LeCam(), LeCam()
    lecam.update(torch.tensor(3.0), torch.tensor(-2.0))
    again.restore({name: t.clone() for name, t in lecam.tensors().items()})
    for each in (lecam, again):
        each.update(torch.tensor(0.1), torch.tensor(0.2))
    assert torch.equal(lecam(logits(1), logits(2)), again(logits(1), logits(2)))
    with pytest.raises(ValueError, match="running means"):
        again.restore({"sums": torch.zeros(3), "mass": torch.zeros(())})
    with pytest.raises(ValueError, match="running means"):
        again.restore({})
