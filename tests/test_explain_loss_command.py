"""`flexvae config explain-loss`: its factors, found again by brute force from gradients."""

from __future__ import annotations

import json

import pytest
import torch

from flexvae_cli.api import Batch, Encoded, Gaussian, loss
from flexvae_cli.builtin_losses import LOSSES, kld, mse
from flexvae_cli.codes import Bound
from flexvae_cli.engine.losses.total import TotalLoss
from flexvae_cli.objective import Ramp, Term
from flexvae_cli.weighing import weighed

SAMPLE, LATENT = (3, 8, 6), (2, 4, 3)
BY_NAME = {spec.name: spec for spec in LOSSES}


def term(name: str, weight: float) -> Term:
    spec = BY_NAME[name]
    return Term(name, Bound(spec, {param.name: param.default for param in spec.params}), weight)


def batch() -> Batch:
    torch.manual_seed(0)
    x, y = torch.rand(4, *SAMPLE), torch.rand(4, *SAMPLE)
    mean, log_variance = torch.randn(4, *LATENT), torch.randn(4, *LATENT)
    leaves = [each.double().requires_grad_() for each in (y, mean, log_variance)]
    return Batch(x.double(), leaves[0], leaves[0], Encoded(leaves[1], Gaussian(leaves[1], leaves[2])))


def slopes(value: torch.Tensor, b: Batch) -> list[torch.Tensor]:
    leaves = [b.output, *b.encoded.posterior]
    found = torch.autograd.grad(value, leaves, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, found, strict=True)]


ELEMENTS = {  # the value of each element, as the loss's own formula has it: (b, c, *space)
    "mse": lambda b: (b.output - b.x) ** 2,
    "l1": lambda b: (b.output - b.x).abs(),
    "huber": lambda b: torch.nn.functional.huber_loss(b.output, b.x, reduction="none"),
    "charbonnier": lambda b: ((b.output - b.x) ** 2 + 1e-6).sqrt(),
    "bce": lambda b: torch.nn.functional.binary_cross_entropy_with_logits(b.output, (b.x + 1) / 2, reduction="none"),
    "fft": lambda b: torch.fft.fft2(b.output - b.x, norm="ortho").abs(),
    "kld": lambda b: 0.5 * (b.encoded.posterior[0] ** 2 + b.encoded.posterior[1].exp() - 1 - b.encoded.posterior[1]),
    "sparse": lambda b: b.encoded.z.abs(),
}


@pytest.mark.parametrize("name", ELEMENTS)
def test_the_factors_are_those_of_the_gradient(name):
    """The weighted loss has the gradient of the elements' values, each times the factor, mean over samples."""
    b, weight = batch(), 0.3
    ours = slopes(TotalLoss([term(name, weight)])(b, 0)["loss"], b)
    (found,) = weighed((term(name, weight),), SAMPLE, LATENT)
    factor = found.per_latent if name in ("kld", "sparse") else found.per_pixel
    assert (found.per_pixel is None) == (name in ("kld", "sparse"))
    assert (found.per_latent is None) == (name not in ("kld", "sparse"))
    by_hand = slopes(factor * ELEMENTS[name](b).flatten(1).sum(1).mean(), b)
    for one, two in zip(ours, by_hand, strict=True):
        assert torch.allclose(one, two, rtol=1e-6, atol=1e-12)
    assert found.per_sample == weight


def test_the_weights_of_papers_that_sum_and_that_average():
    """With the reconstruction's weight taken out, both formulas point where ours does."""
    b, terms = batch(), (term("mse", 0.7), term("kld", 2e-3), term("sparse", 0.1), term("gradient", 0.2))
    ours = slopes(TotalLoss(terms)(b, 0)["loss"], b)
    found = weighed(terms, SAMPLE, LATENT)
    assert (found[0].beside_sums, found[0].beside_means) == (1.0, 1.0)
    for reduce, factors in [
        (torch.sum, [each.beside_sums for each in found]),
        (torch.mean, [each.beside_means for each in found]),
    ]:
        values = [reduce(ELEMENTS[each.term.name](b).flatten(1), dim=1).mean() for each in found[:3]]
        values.append(BY_NAME["gradient"].factory()(b))
        paper = slopes(sum(f * v for f, v in zip(factors, values, strict=True)), b)
        scale = ours[0].norm() / paper[0].norm()
        for one, two in zip(ours, paper, strict=True):
            assert torch.allclose(one, two * scale, rtol=1e-6, atol=1e-12)


def test_what_a_plugin_does_not_state_and_what_it_sums():
    @loss("silent")
    def silent():
        """Silent."""

    @loss("sums", reduction="element-sum")
    def sums():
        """Sums."""

    found = weighed(
        (Term("a", Bound(sums, {}), 0.5), term("kld", 2.0), Term("c", Bound(silent, {}), 3.0)), SAMPLE, LATENT
    )
    assert (found[0].per_pixel, found[0].per_latent, found[0].per_sample) == (0.5, None, 0.5)
    assert (found[1].beside_sums, found[1].beside_means) == (4.0, 2.0 * 24 / (0.5 * 144))
    unknown = found[2]
    assert (unknown.reduction, unknown.per_pixel, unknown.per_sample, unknown.beside_sums) == (None, None, None, None)
    without = weighed((term("mse", 0.0), term("kld", 2.0)), SAMPLE, LATENT)
    assert (without[1].per_latent, without[1].beside_sums, without[1].beside_means) == (2.0, None, None)


@pytest.fixture
def config(tmp_path):
    (tmp_path / "e.json").write_text(json.dumps(["C2d_3_8_4_4"]))
    (tmp_path / "d.json").write_text(json.dumps(["C2d_4_8_1", "UpS_4", "C2d_8_3_3_1_1"]))
    path = tmp_path / "c.toml"
    path.write_text(
        '[model]\nencoder = "e.json"\ndecoder = "d.json"\n[data]\nsource = "x"\ninput = "3x32x32"\n'
        '[loss]\nkld_weight = 1e-4\nkld_schedule = "linear"\nkld_warmup_steps = 50\n'
        'term = [{ name = "fft", start = 9 }]\n'
        '[train]\nrun_dir = "run"\nmax_steps = 100\n[[phase]]\nstart = 60\ninput = "3x64x64"\n'
    )
    return path


def test_the_command_for_machines(flexvae, config):
    phases = json.loads(flexvae("config", "explain-loss", "--config", config, "--json").stdout)["phases"]
    assert [(p["start"], p["elements"], p["latent_elements"]) for p in phases] == [(0, 3072, 256), (60, 12288, 1024)]
    reconstruction, divergence, spectrum = phases[0]["terms"]
    assert reconstruction["per_pixel"] == 1 / 3072
    assert divergence == {
        "term": "kld",
        "code": "kld",
        "weight": 1e-4,
        "steps": "rises over 50 steps",
        "reduction": "latent-sum",
        "per_pixel": None,
        "per_latent": 1e-4,
        "per_sample": 1e-4,
        "beside_sums": pytest.approx(0.3072),
        "beside_means": pytest.approx(0.0256),
    }
    assert (spectrum["steps"], spectrum["reduction"]) == ("from step 9 on", "element")
    assert phases[1]["terms"][1]["beside_sums"] == pytest.approx(1.2288)


def test_the_command_for_people(flexvae, config):
    done = flexvae("config", "explain-loss", "--config", config)
    assert done.exit_code == 0
    assert "a sample has 3,072 elements (3x32x32), its latent 256 (4x8x8)" in done.stdout
    assert "from step 60 on:" in done.stdout
    row = next(line for line in done.stdout.splitlines() if line.startswith("kld"))
    words = ["rises", "over", "50", "steps", "latent-sum", "0.0001", "0.0001", "0.3072", "0.0256"]
    assert row.replace("|", " ").split() == ["kld", "kld", "0.0001", *words]
    told = flexvae("config", "explain-loss", "--config", config, "--set", "loss.kld_weight=-1")
    assert told.exit_code == 2


@pytest.mark.parametrize("command", [("config", "explain-loss"), ("config", "show"), ("mem", "--gpu", "h100-80")])
def test_what_set_leaves_out_of_a_config_is_told_by_every_command(flexvae, config, command):
    config.write_text(f"{config.read_text()}[optimizer]\nbetas = [0.8, 0.9]\n")
    done = flexvae(*command, "--config", config, "--set", "optimizer.name=sgd")
    assert done.exit_code == 0, done.stderr
    assert "note: optimizer.betas of the config is left out: sgd makes no use of it" in done.stderr


def test_a_controlled_weight_is_told_as_one(flexvae, config):
    steady = ["loss.kld_schedule='constant'", "loss.kld_warmup_steps=0", "loss.kld_target=0.5"]
    arguments = [argument for override in steady for argument in ("--set", override)]
    done = flexvae("config", "explain-loss", "--config", config, *arguments)
    assert "moved to hold 0.5 nats per latent element" in done.stdout


def test_a_course_in_words():
    assert str(Ramp()) == "constant"
    assert str(Ramp(3, 4)) == "from step 3 on, rises over 4 steps"
    assert str(Ramp(0, 4, 9)) == "rises over 4 steps, anew every 9 steps"


def test_the_default_net_s_beta():
    """The number of docs/training.md: 3x256x256 pixels, mean squared error, a weight of 1e-6."""
    found = weighed((Term("r", Bound(mse, {}), 1.0), Term("k", Bound(kld, {}), 1e-6)), (3, 256, 256), (4, 16, 16))
    assert found[1].beside_sums == pytest.approx(0.196608)
    assert found[1].beside_means == pytest.approx(0.001024)
