"""The losses against formulas written out by hand, and their gradients against finite differences."""

from __future__ import annotations

import math

import pytest
import torch
from pytorch_msssim import ms_ssim

from flexvae_cli.api import Batch, Encoded, Gaussian, loss
from flexvae_cli.api.testing import check_loss
from flexvae_cli.builtin_losses import LOSSES, quantizers
from flexvae_cli.codes import Bound
from flexvae_cli.engine.losses.spectrum import FocalFrequency, focus, transform
from flexvae_cli.engine.losses.total import TotalLoss
from flexvae_cli.objective import Ramp, Term
from flexvae_cli.plugins import installed
from flexvae_cli.structure import bind_code


def term(name: str, code: str, weight: float, **more) -> Term:
    problems = []
    bound = bind_code(code, "loss", installed().registry, "x", problems, {})
    assert not problems
    return Term(name, bound, weight, **more)


def batch(size=(2, 3, 24, 24), *, spread=1.0, dtype=torch.float32) -> Batch:
    draw = torch.Generator().manual_seed(1)
    x = torch.rand(size, generator=draw, dtype=dtype) * 2 - 1
    output = torch.randn(size, generator=draw, dtype=dtype) * spread
    mean, log_variance = (torch.randn(2, 4, 3, 3, generator=draw, dtype=dtype) for _ in range(2))
    return Batch(x, output, output, Encoded(mean * 2, Gaussian(mean, log_variance)))


def value(code: str, b: Batch) -> float:
    return term("t", code, 1.0).bound.build()(b).item()


def gaussian_ssim(a: torch.Tensor, b: torch.Tensor, data_range: float, size: int = 11) -> float:
    """SSIM of Wang et al. (2004) by explicit windows: sigma 1.5, K = 0.01 and 0.03, no padding."""
    line = torch.exp(-((torch.arange(float(size)) - size // 2) ** 2) / (2 * 1.5**2))
    window = torch.outer(line, line) / line.sum() ** 2
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2

    def local(t):
        return (t.unfold(2, size, 1).unfold(3, size, 1) * window).sum((-1, -2))

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
    values = TotalLoss(terms)(b, 0)
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
        ("charbonnier_0.5", lambda d, b: (d**2 + 0.25).sqrt().mean()),
        ("psnr_20", lambda d, b: sum(10 * torch.log10((e / 2).square().mean() + 0.01) for e in d) / len(d)),
        (
            "bce",
            lambda d, b: (
                -(
                    (b.x + 1) / 2 * torch.log(torch.sigmoid(b.output))
                    + (1 - b.x) / 2 * torch.log(1 - torch.sigmoid(b.output))
                ).mean()
            ),
        ),
        (
            "gradient",
            lambda d, b: (d[:, :, 1:] - d[:, :, :-1]).abs().mean() / 2 + (d[..., 1:] - d[..., :-1]).abs().mean() / 2,
        ),
        ("fft", lambda d, b: spectrum(d).abs().mean()),
        ("fft_amplitude", lambda d, b: (spectrum(b.output).abs() - spectrum(b.x).abs()).abs().mean()),
        ("ffl_0", lambda d, b: (d**2).mean()),  # Parseval
    ],
)
def test_reconstruction_losses_by_hand(code, formula):
    b = batch()
    values = TotalLoss([term("reconstruction", code, 1.0)])(b, 0)
    assert values["loss"].item() == pytest.approx(formula(b.output - b.x, b).item(), rel=1e-5)


def spectrum(x: torch.Tensor) -> torch.Tensor:
    """The orthonormal transform of (b, c, h, w) as two matrix products."""
    for axis in (2, 3):
        n = x.shape[axis]
        at = torch.arange(n, dtype=torch.float64)
        matrix = torch.exp(-2j * math.pi * torch.outer(at, at) / n) / math.sqrt(n)
        x = torch.movedim(torch.movedim(x, axis, -1).to(torch.complex128) @ matrix, -1, axis)
    return x


def test_focal_frequency_by_hand():
    """The paper's equations: w = |F_r - F_f|^alpha, over its largest in each channel of each sample."""
    b = batch((2, 3, 8, 10))
    error = spectrum(b.output - b.x).abs()
    weight = error**1.5
    weight = weight / weight.flatten(2).max(dim=2).values[:, :, None, None]
    assert value("ffl_1.5", b) == pytest.approx((weight * error**2).mean().item(), rel=1e-5)
    assert value("ffl", b._replace(reconstruction=b.x)) == 0.0


def test_the_focus_is_a_constant_to_the_gradient():
    """With the weights held still it is a quadratic form, and that is what the gradient belongs to."""
    b = batch((2, 2, 6, 5), dtype=torch.float64)
    y = b.output.clone().requires_grad_()
    FocalFrequency(1.0)(b._replace(reconstruction=y)).backward()
    error = transform(b.output - b.x)
    weight = focus(error.abs() ** 2, 1.0)
    by_hand = torch.fft.ifft2(weight * error, norm="ortho").real * 2 / error.numel()
    assert torch.allclose(y.grad, by_hand, atol=1e-12)
    assert weight.amax() == 1.0


@pytest.mark.parametrize("size", [(2, 3, 24), (2, 1, 6, 8, 10)])
def test_losses_of_other_dimensions(size):
    b = batch(size)
    d = b.output - b.x
    slopes = [(d.narrow(i, 1, n - 1) - d.narrow(i, 0, n - 1)).abs().mean() for i, n in enumerate(size) if i > 1]
    assert value("gradient", b) == pytest.approx((sum(slopes) / len(slopes)).item(), rel=1e-5)
    assert value("fft", b._replace(reconstruction=b.x)) == 0.0
    constant = torch.full_like(b.x, 0.5)  # all of it lies at frequency 0
    n = math.prod(size[2:])
    assert value("fft", b._replace(reconstruction=b.x + constant)) == pytest.approx(0.5 / math.sqrt(n), rel=1e-3)


def test_ssim_and_its_scales():
    b = batch(spread=0.3)
    assert value("ssim_7", b) == pytest.approx(1 - gaussian_ssim(b.output, b.x, 2.0, size=7), rel=1e-4)
    assert value("ssim", b._replace(reconstruction=b.x)) == pytest.approx(0, abs=1e-5)
    large = batch((2, 1, 40, 36), spread=0.1)
    x, y = (large.x + 1) / 2, (large.x + large.output + 1) / 2
    near = large._replace(reconstruction=large.x + large.output)
    assert value("msssim_3", near) == pytest.approx(1 - ms_ssim(x, y, data_range=1.0, win_size=3).item(), rel=1e-4)
    assert value("msssim_3", large._replace(reconstruction=large.x)) == pytest.approx(0, abs=1e-5)


def test_the_kl_of_the_standard_normal_is_zero_and_of_a_shifted_one_known():
    zero = torch.zeros(3, 2, 4, 4)
    kl = TotalLoss([term("kld", "kld", 1.0)])
    b = batch()
    assert kl(b._replace(encoded=Encoded(zero, Gaussian(zero, zero))), 0)["loss"].item() == 0.0
    shifted = kl(b._replace(encoded=Encoded(zero, Gaussian(zero + 2.0, zero + math.log(4.0)))), 0)["loss"].item()
    assert shifted == pytest.approx(32 * 0.5 * (4.0 + 4.0 - 1 - math.log(4.0)))  # 32 elements to a sample


def test_free_bits_are_a_floor_for_each_channel():
    """Three channels at 0.02, 0.5 and 2 nats per element; the mean over batch and positions counts, no element."""
    nats = torch.tensor([0.02, 0.5, 2.0])[:, None, None]
    mean = (2 * nats).sqrt().repeat(4, 1, 5, 3)
    mean[:2, 1] *= math.sqrt(1.9)  # half of the samples above, half below; their mean stays 0.5
    mean[2:, 1] *= math.sqrt(0.1)
    mean.requires_grad_()
    b = batch()._replace(encoded=Encoded(mean, Gaussian(mean, torch.zeros_like(mean))))
    found = term("kld", "kld_0.4", 1.0).bound.build()(b)
    assert found.item() == pytest.approx((0.4 + 0.5 + 2.0) * 15, rel=1e-5)
    found.backward()
    assert not mean.grad[:, 0].any()
    assert mean.grad[:, 1:].all()
    assert value("kld", b) == pytest.approx((0.02 + 0.5 + 2.0) * 15, rel=1e-5)


CODES = [
    "mse",
    "l1",
    "huber_0.5",
    "charbonnier_0.1",
    "psnr",
    "bce",
    "gradient",
    "fft",
    "fft_amplitude",
    "ffl_0",
    "ssim_5",
    "msssim_3",
    "kld",
    "kld_0.01",
    "sparse",
]


@pytest.mark.parametrize("code", CODES)
def test_the_gradient_is_that_of_finite_differences(code):
    """In float64 along random directions of the reconstruction, the posterior and the latent; no part is detached."""
    b = batch((2, 1, 33, 35) if code.startswith("msssim") else (2, 2, 6, 7), spread=0.4, dtype=torch.float64)
    if code.startswith("msssim"):  # far from the samples, factors below 0 are cut off
        b = b._replace(output=b.x + 0.1 * b.output)
    function = term("t", code, 1.0).bound.build()
    leaves = [each.clone().requires_grad_() for each in (b.output, *b.encoded.posterior, b.encoded.z)]

    def at(parts):
        out, mean, log_variance, z = parts
        return function(Batch(b.x, out, out, Encoded(z, Gaussian(mean, log_variance))))

    gradients = torch.autograd.grad(at(leaves), leaves, allow_unused=True)
    reached = [gradient is not None and bool(gradient.any()) for gradient in gradients]
    assert reached == {"kld": [False, True, True, False], "sparse": [False, False, False, True]}.get(
        code.partition("_")[0], [True, False, False, False]
    )
    draw = torch.Generator().manual_seed(3)
    for _ in range(4):
        way = [torch.randn(leaf.shape, generator=draw, dtype=torch.float64) for leaf in leaves]
        slope = sum((g * w).sum() for g, w in zip(gradients, way, strict=True) if g is not None)
        with torch.no_grad():
            up, down = (at([leaf + h * w for leaf, w in zip(leaves, way, strict=True)]) for h in (1e-6, -1e-6))
        assert ((up - down) / 2e-6).item() == pytest.approx(slope.item(), rel=2e-3, abs=1e-9)


@pytest.mark.parametrize("code", CODES)
def test_no_loss_waits_for_the_device(code):
    """On the meta device a number that is read is an error."""
    function = term("t", code, 1.0).bound.build()
    with torch.device("meta"):
        out, mean = torch.zeros(2, 1, 40, 40), torch.zeros(2, 4, 3, 3)
        assert function(Batch(out, out, out, Encoded(mean, Gaussian(mean, mean)))).shape == ()


def test_every_loss_states_its_reduction():
    assert [spec.name for spec in LOSSES if spec.reduction is None] == []


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda b: (b.output.detach() - b.x).square().mean(), "it has no gradient to the output or the latent"),
        (lambda b: b.x.square().mean(), "it has no gradient to the output or the latent"),
        (lambda b: torch.no_grad()(lambda: (b.output - b.x).square().mean())(), "it has no gradient"),
        (lambda b: (b.x * b.output).mean(), "its gradient is the same whatever the net gives"),
        (
            lambda b: torch.nn.functional.binary_cross_entropy_with_logits(b.x, (b.output + 1) / 2),
            "are two arguments swapped?",
        ),
        (lambda b: ((b.output - 3 * b.output.detach()) ** 2).mean(), "it does not fall along its gradient"),
        (lambda b: (b.output - b.x).square().sum(), "is not the mean of its values for each"),
        (lambda b: (b.output - b.x.clamp_(-0.5, 0.5)).square().mean(), "it changes its batch in place"),
    ],
)
def test_planted_defects_are_caught(function, message):
    @loss("probe", reduction="sample")
    def probe():
        """A probe."""
        return function

    with pytest.raises(AssertionError) as caught:
        check_loss(probe)
    assert message in str(caught.value)


def test_a_sum_over_a_batch_may_be_left_unstated():
    @loss("probe")
    def probe():
        """A probe."""
        return lambda b: (b.output - b.x).square().sum()

    check_loss(probe)


def test_a_reduction_that_is_none_is_refused():
    with pytest.raises(ValueError, match=r"loss probe: the reduction is element or .* not 'mean'"):
        loss("probe", reduction="mean")


def test_the_losses_of_samples_see_the_reconstruction_where_the_output_is_logits():
    b = batch()
    b = b._replace(reconstruction=b.output.sigmoid() * 2 - 1)
    for code in ("mse", "l1", "huber", "charbonnier", "gradient", "fft", "ffl", "ssim"):
        assert value(code, b) == pytest.approx(value(code, b._replace(output=b.reconstruction)))
        assert value(code, b) != pytest.approx(value(code, b._replace(reconstruction=b.output)))


def test_ramps_are_exact():
    late = Ramp(start=10)
    assert [late.at(step) for step in (0, 9, 10, 11)] == [0, 0, 1, 1]
    rising = Ramp(start=10, warmup=4)
    assert [rising.at(step) for step in (9, 10, 11, 12, 13, 14)] == [0, 0.25, 0.5, 0.75, 1, 1]
    cyclical = Ramp(warmup=2, cycle=5)
    assert [cyclical.at(step) for step in range(11)] == [0.5, 1, 1, 1, 1, 0.5, 1, 1, 1, 1, 0.5]
    assert Ramp().at(0) == 1


def test_a_term_is_not_computed_before_its_start():
    seen = []

    @loss("probe")
    def probe():
        """A probe."""

        def measure(b):
            seen.append(1)
            return b.output.mean()

        return measure

    b = batch()
    late = Term("late", Bound(probe, {}), 2.0, Ramp(start=3, warmup=2))
    silent = Term("silent", term("x", "l1", 0.0).bound, 0.0)
    total = TotalLoss([term("reconstruction", "mse", 1.0), silent, late])
    before, first, second = (total(b, step) for step in (2, 3, 4))
    assert set(before) == {"loss", "reconstruction", "silent"}  # a weight of 0 is logged
    assert len(seen) == 2
    assert before["loss"] == before["reconstruction"]
    assert first["loss"].item() == pytest.approx((before["loss"] + 1.0 * first["late"]).item())
    assert second["loss"].item() == pytest.approx((before["loss"] + 2.0 * second["late"]).item())


def test_quantizers_are_weighed():
    b = batch()
    own = torch.tensor(3.0, requires_grad=True)
    b = b._replace(encoded=b.encoded._replace(loss=own))
    terms = [term("reconstruction", "mse", 1.0), Term("bottleneck", Bound(quantizers, {}), 0.25)]
    values = TotalLoss(terms)(b, 0)
    assert values["bottleneck"].item() == 3.0
    assert values["loss"].item() == pytest.approx(values["reconstruction"].item() + 0.75)
    values["loss"].backward()
    assert own.grad.item() == 0.25
    unannounced = TotalLoss(terms[:1])(b, 0)
    assert unannounced["loss"].item() == pytest.approx(values["reconstruction"].item() + 3.0)
    assert TotalLoss(terms)(b._replace(encoded=b.encoded._replace(loss=None)), 0)["bottleneck"].item() == 0.0


def test_phases_share_what_they_have_in_common():
    one = TotalLoss([term("reconstruction", "huber_0.5", 1.0), term("l1", "l1", 1.0)])
    two = TotalLoss([term("reconstruction", "huber_0.5", 3.0), term("l1", "huber", 1.0)], before=one)
    assert two.functions[0] is one.functions[0]
    assert two.functions[1].delta == 1.0
    assert two.controller is one.controller


def test_the_psnr_loss_is_the_measure_with_its_sign_turned():
    from flexvae_cli.engine.metrics import scores

    x = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 1.6 - 0.8
    y = x + 0.1 * torch.rand(x.shape, generator=torch.Generator().manual_seed(2))
    batch = Batch(x, y, y, Encoded(x))
    found = TotalLoss([term("t", "psnr", 1.0)])(batch, 0)["loss"].item()
    wanted = sum(scores(a, c).psnr for a, c in zip(x, y, strict=True)) / 3
    assert found == pytest.approx(-wanted, abs=0.01)


def test_similarity_of_volumes_is_that_of_their_slices_where_they_are_flat() -> None:
    """Along an axis that does not change the window averages equal numbers."""
    torch.manual_seed(0)
    flat = batch((1, 2, 12, 14), spread=0.3)
    deep = [each[:, :, None].expand(-1, -1, 9, -1, -1) for each in (flat.x, flat.reconstruction)]
    volume = Batch(deep[0], deep[1], deep[1], flat.encoded)
    assert value("ssim_5", volume) == pytest.approx(value("ssim_5", flat), rel=1e-4)


def tone(frequency: float, amplitude: float = 0.5, length: int = 4096) -> torch.Tensor:
    """A sine at a rate of 16,000, (1, 1, n)."""
    return (amplitude * torch.sin(torch.arange(length) * (2 * torch.pi * frequency / 16_000)))[None, None]


def heard(x: torch.Tensor, y: torch.Tensor) -> Batch:
    z = torch.zeros(len(x), 1, 4)
    return Batch(x, y, y, Encoded(z, Gaussian(z, z)))


def test_a_magnitude_is_the_amplitude_of_a_sine() -> None:
    from flexvae_cli.engine.losses.audio import Magnitudes

    found = Magnitudes(512)(tone(1000, amplitude=0.25))[0]  # 1,000 Hz is frequency 32 of a window of 512
    assert found.shape[0] == 257
    assert found[32, 5:-5].tolist() == pytest.approx([0.25] * (found.shape[1] - 10), rel=1e-3)
    assert found[40:, 5:-5].max() < 1e-3


def test_the_spectral_loss_of_signals_is_its_formula() -> None:
    """Twice the amplitude: the norm of the difference is that of the original, the logarithms differ by log 2."""
    noise = torch.randn(2, 2, 3000, generator=torch.Generator().manual_seed(0))
    found = heard(noise * 0.1, noise * 0.2)
    assert term("t", "stft", 1.0).bound.build()(found).item() == pytest.approx(1 + math.log(2), rel=1e-3)
    assert term("t", "stft", 1.0).bound.build()(heard(noise, noise)).item() == pytest.approx(0, abs=1e-5)


def test_the_mel_loss_is_blind_to_sign_and_sees_pitch_and_loudness() -> None:
    mel = term("t", "mel", 1.0).bound.build()
    x = tone(440)
    assert mel(heard(x, -x)).item() == pytest.approx(0, abs=1e-5)
    assert mel(heard(x, tone(880))).item() > 0.3
    noise = torch.randn(1, 1, 4096, generator=torch.Generator().manual_seed(0))
    assert mel(heard(0.1 * noise, noise)).item() == pytest.approx(1, abs=0.01)  # a decade


def test_mel_triangles_cover_every_frequency_once() -> None:
    from flexvae_cli.engine.losses.audio import mel_bank

    bank = mel_bank(16_000, 40, 1024)
    assert bank.shape == (40, 513)
    assert (bank.sum(1) > 0).all()
    middle = bank.sum(0)[10:460]  # between the first peak and the last
    torch.testing.assert_close(middle, torch.ones_like(middle), atol=1e-5, rtol=0)


@pytest.mark.parametrize("code", ["stft", "mel"])
def test_the_gradient_of_silence_is_finite(code: str) -> None:
    y = torch.zeros(1, 1, 2048, requires_grad=True)
    (gradient,) = torch.autograd.grad(term("t", code, 1.0).bound.build()(heard(torch.zeros(1, 1, 2048), y)), y)
    assert gradient.isfinite().all()
