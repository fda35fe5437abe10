"""The loss against the formula written out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from flexvae_cli.api import Batch, Encoded, Gaussian
from flexvae_cli.engine.losses.total import TotalLoss
from flexvae_cli.objective import Term
from flexvae_cli.plugins import installed
from flexvae_cli.structure import bind_code


def term(name: str, code: str, weight: float) -> Term:
    problems = []
    bound = bind_code(code, "loss", installed().registry, "x", problems, {})
    assert not problems
    return Term(name, bound, weight)


def batch(size=(2, 3, 24, 24), *, spread=1.0) -> Batch:
    draw = torch.Generator().manual_seed(1)
    x = torch.rand(size, generator=draw) * 2 - 1
    output = torch.randn(size, generator=draw) * spread
    mean, log_variance = torch.randn(2, 4, 3, 3, generator=draw), torch.randn(2, 4, 3, 3, generator=draw)
    return Batch(x, output, output, Encoded(mean * 2, Gaussian(mean, log_variance)))


def gaussian_ssim(a: torch.Tensor, b: torch.Tensor, data_range: float) -> float:
    """SSIM of Wang et al. (2004) by explicit windows: 11x11, sigma 1.5, K = 0.01 and 0.03, no padding."""
    line = torch.exp(-((torch.arange(11.0) - 5) ** 2) / (2 * 1.5**2))
    window = torch.outer(line, line) / line.sum() ** 2
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2

    def local(t):
        return (t.unfold(2, 11, 1).unfold(3, 11, 1) * window).sum((-1, -2))

    mu_a, mu_b = local(a), local(b)
    var_a, var_b, cov = local(a * a) - mu_a**2, local(b * b) - mu_b**2, local(a * b) - mu_a * mu_b
    score = (2 * mu_a * mu_b + c1) * (2 * cov + c2) / ((mu_a**2 + mu_b**2 + c1) * (var_a + var_b + c2))
    return score.mean().item()


def test_the_total_is_the_seed_s_formula():
    b = batch(spread=0.3)
    terms = [
        term("reconstruction", "mse", 1.5),
        term("kld", "kld", 1e-3),
        term("ssim", "ssim", 0.5),
        term("sparse", "sparse", 1.0),
    ]
    values = TotalLoss(terms)(b)
    mean, log_variance = b.encoded.posterior
    reconstruction = ((b.output - b.x) ** 2).mean()
    kld = sum(-0.5 * (1 + log_variance[i] - mean[i] ** 2 - log_variance[i].exp()).sum() for i in range(2)) / 2
    similarity = gaussian_ssim(b.output, b.x, data_range=2.0)
    sparse = b.encoded.z.abs().mean()
    expected = 1.5 * reconstruction + 1e-3 * kld + 0.5 * (1 - similarity) + sparse
    assert values["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert values["kld"].item() == pytest.approx(kld.item(), rel=1e-6)
    assert values["ssim"].item() == pytest.approx(1 - similarity, rel=1e-4)
    assert set(values) == {"loss", "reconstruction", "kld", "ssim", "sparse"}


@pytest.mark.parametrize(
    ("code", "formula"),
    [
        ("mse", lambda d, b: (d**2).mean()),
        ("l1", lambda d, b: d.abs().mean()),
        ("huber_0.25", lambda d, b: torch.where(d.abs() < 0.25, 0.5 * d**2, 0.25 * (d.abs() - 0.125)).mean()),
        (
            "bce",
            lambda d, b: (
                -(
                    (b.x + 1) / 2 * torch.log(torch.sigmoid(b.output))
                    + (1 - b.x) / 2 * torch.log(1 - torch.sigmoid(b.output))
                ).mean()
            ),
        ),
    ],
)
def test_reconstruction_losses_by_hand(code, formula):
    b = batch()
    values = TotalLoss([term("reconstruction", code, 1.0)])(b)
    assert values["loss"].item() == pytest.approx(formula(b.output - b.x, b).item(), rel=1e-5)


def test_the_kl_of_the_standard_normal_is_zero_and_of_a_shifted_one_known():
    zero = torch.zeros(3, 2, 4, 4)
    loss = TotalLoss([term("kld", "kld", 1.0)])
    b = batch()
    assert loss(b._replace(encoded=Encoded(zero, Gaussian(zero, zero))))["loss"].item() == 0.0
    shifted = loss(b._replace(encoded=Encoded(zero, Gaussian(zero + 2.0, zero + math.log(4.0)))))["loss"].item()
    assert shifted == pytest.approx(32 * 0.5 * (4.0 + 4.0 - 1 - math.log(4.0)))  # 32 elements to a sample


def test_ssim_of_equal_images_costs_nothing():
    b = batch()
    assert TotalLoss([term("ssim", "ssim", 1.0)])(b._replace(reconstruction=b.x))["loss"].item() == pytest.approx(
        0, abs=1e-5
    )


@pytest.mark.parametrize("code", ["mse", "l1", "huber", "bce", "kld", "ssim", "sparse"])
def test_every_term_moves_what_it_measures(code):
    """Finite differences along the gradient: the term is connected to the nets and its sign is right."""
    b = batch(spread=0.3)
    leaves = [b.output, *b.encoded.posterior, b.encoded.z]
    for leaf in leaves:
        leaf.requires_grad_()
    loss = TotalLoss([term("t", code, 1.0)])

    def value(parts):
        out, mean, log_variance, z = parts
        return loss(Batch(b.x, out, out, Encoded(z, Gaussian(mean, log_variance))))["loss"]

    gradients = torch.autograd.grad(value(leaves), leaves, allow_unused=True)
    gradients = [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, gradients, strict=True)]
    norm = sum(g.square().sum() for g in gradients).sqrt()
    assert norm > 0
    step = 1e-2
    with torch.no_grad():
        up, down = (
            value([x + sign * step * g / norm for x, g in zip(leaves, gradients, strict=True)]) for sign in (1, -1)
        )
    assert ((up - down) / (2 * step)).item() == pytest.approx(norm.item(), rel=0.05)
