"""The adversary: what reaches which net's gradient, that both players move the right way, and its state."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from flexvae_cli.adversary import adversary_of
from flexvae_cli.config import load_config, shipped_configs
from flexvae_cli.config.settings import AdversarialTable
from flexvae_cli.engine.adversarial import Adversary, make_adversary
from flexvae_cli.engine.bottlenecks.none import Plain
from flexvae_cli.engine.vae import VAE
from flexvae_cli.errors import UsageError
from flexvae_cli.plan import make_plan
from flexvae_cli.plugins import installed

CRITIC = ["C2d_3_8_4_2_1", "SiLU", "C2d_8_8_4_2_1", "GN_2_8", "SiLU", "C2d_8_1_3_1_1"]
LOSSES = ["hinge", "non-saturating", "least-squares"]
GOOD = torch.zeros((), dtype=torch.bool)


def tiny_vae() -> VAE:
    torch.manual_seed(0)
    decoder = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.Upsample(scale_factor=4), nn.Conv2d(8, 3, 3, padding=1))
    return VAE(nn.Conv2d(3, 4, 4, 4), Plain(), decoder)


def samples(count: int = 3, seed: int = 5) -> torch.Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.fixture
def make(tmp_path):
    """An adversary of a tiny autoencoder; keys of `[adversarial]` by name."""

    def build(vae=None, *, critic=CRITIC, seed=1, shape=(3, 16, 16), **settings):
        path = tmp_path / "critic.json"
        path.write_text(json.dumps(critic))
        problems = []
        table = AdversarialTable(discriminator=path, **settings)
        plan = adversary_of(table, [shape], installed().registry, None, problems)
        assert not problems
        return Adversary(plan, vae or tiny_vae(), seed)

    return build


def gradients(module: nn.Module) -> list[torch.Tensor | None]:
    return [None if p.grad is None else p.grad.clone() for p in module.parameters()]


def weights(module: nn.Module) -> list[torch.Tensor]:
    return [t.clone() for t in module.state_dict().values()]


def same(one, two) -> bool:
    return all((a is None and b is None) or torch.equal(a, b) for a, b in zip(one, two, strict=True))


def generator_loss(adversary, vae, x):
    batch = vae(x)
    other = (batch.output - x).square().mean()
    values = adversary.generator_term(batch, other)
    return other, values


def train_discriminator(adversary, x, fake, step=0, parts=1):
    """One step of the discriminator; returns the mean values."""
    adversary.optimization.zero_grad()
    totals = {}
    for real, false in zip(x.chunk(parts), fake.chunk(parts), strict=True):
        share = len(real) / len(x)
        for name, value in adversary.discriminator_backward(real, false, share, step).items():
            totals[name] = totals.get(name, 0.0) + value * share
    adversary.optimization.step(1.0, GOOD)
    adversary.update(totals)
    return totals


def test_it_starts_exactly_where_it_is_told_to(make):
    adversary = make(start=7)
    assert [adversary.active(step) for step in (0, 6, 7, 8)] == [False, False, True, True]


def test_in_the_autoencoder_s_pass_nothing_is_kept_for_the_discriminator_s_weights(make):
    vae = tiny_vae()
    adversary = make(vae)
    wanted = []
    adversary.module.register_forward_hook(
        lambda net, *_: wanted.append({p.requires_grad for p in net.parameters()}),
    )
    generator_loss(adversary, vae, samples())
    adversary.discriminator_backward(samples(), samples(), 1.0, 0)
    assert wanted == [{False}, {True}, {True}]


@pytest.mark.parametrize("before", [False, True])
def test_the_autoencoder_s_loss_leaves_the_discriminator_s_gradient_alone(make, before):
    vae = tiny_vae()
    adversary = make(vae)
    if before:
        adversary.discriminator_backward(samples(), samples(seed=6), 1.0, 0)
    found = gradients(adversary.module)
    other, values = generator_loss(adversary, vae, samples())
    (other + values["adversarial_weight"] * values["adversarial"]).backward()
    assert same(gradients(adversary.module), found)
    assert all(g is None for g in found) is not before
    assert all(p.requires_grad for p in adversary.module.parameters())
    assert all(p.grad is not None for p in vae.parameters())


def test_the_discriminator_is_thawed_whatever_happens(make):
    vae = tiny_vae()
    adversary = make(vae)
    adversary.module[0].bias.requires_grad_(False)
    batch = vae(samples())
    with pytest.raises(RuntimeError):
        adversary.generator_term(batch._replace(reconstruction=batch.x[:, :1]), batch.output.mean())
    assert [p.requires_grad for p in adversary.module[0].parameters()] == [True, False]


def test_the_discriminator_s_loss_leaves_the_autoencoder_s_gradient_alone(make):
    vae = tiny_vae()
    adversary = make(vae, r1=1.0, lecam=0.1)
    x = samples().requires_grad_()
    batch = vae(x)
    adversary.discriminator_backward(x, batch.reconstruction, 1.0, 0)  # with its graph: it is not followed
    assert x.grad is None
    assert all(p.grad is None for p in vae.parameters())
    assert all(p.grad is not None for p in adversary.module.parameters())


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("adaptive", [False, True])
def test_the_adversarial_gradient_is_that_of_a_plain_pass_through_the_discriminator(make, loss, adaptive):
    vae = tiny_vae()
    adversary = make(vae, loss=loss, adaptive=adaptive, weight=0.3)
    x = samples()
    _, values = generator_loss(adversary, vae, x)
    weight = values["adversarial_weight"]
    (weight * values["adversarial"]).backward()
    found = gradients(vae)
    vae.zero_grad()
    plain = adversary.loss.generator(adversary.module(vae(x).reconstruction))
    (weight * plain).backward()
    assert values["adversarial"].item() == plain.item()
    for mine, theirs in zip(found, gradients(vae), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-8)
    assert adaptive or weight.item() == pytest.approx(0.3)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_adversarial_term_changes_the_autoencoder_as_finite_differences_say(make, loss):
    vae = tiny_vae()
    adversary = make(vae, loss=loss, adaptive=False)
    x, last = samples(), vae.decoder[2].weight
    generator_loss(adversary, vae, x)[1]["adversarial"].backward()
    norm = last.grad.norm()
    assert norm > 0

    def value(shift: float) -> float:
        with torch.no_grad():
            last.add_(last.grad / norm, alpha=shift)
            logits = adversary.module(vae(x).reconstruction)
            last.sub_(last.grad / norm, alpha=shift)
            return adversary.loss.generator(logits).item()

    assert (value(0.05) - value(-0.05)) / 0.1 == pytest.approx(norm.item(), rel=0.02)


def test_the_adaptive_weight_is_the_ratio_at_the_last_layer_and_is_clamped(make):
    vae = tiny_vae()
    adversary = make(vae, weight=0.25)
    x, last = samples(), vae.decoder[2].weight
    batch = vae(x)
    other = 3 * (batch.output - x).square().mean()
    plain = adversary.loss.generator(adversary.module(batch.reconstruction))
    above, below = (torch.autograd.grad(t, last, retain_graph=True)[0].norm().item() for t in (other, plain))
    weight = adversary.generator_term(batch, other)["adversarial_weight"]
    assert weight.item() == pytest.approx(0.25 * above / (below + 1e-4), rel=1e-4)
    assert not weight.requires_grad
    small = make(vae, weight=0.25, max_weight=1e-2)
    assert small.generator_term(batch, other)["adversarial_weight"].item() == pytest.approx(0.25 * 1e-2)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_discriminator_learns_to_tell_and_the_autoencoder_then_to_pass(make, loss):
    """Caught here: samples and reconstructions swapped on either side, or a gradient that reaches nobody."""
    vae = tiny_vae()
    adversary = make(vae, loss=loss, weight=1.0, optimizer={"lr": 1e-2, "clip_norm": 0.0})
    x = samples(8)
    fake = vae(x).reconstruction.detach()
    first = train_discriminator(adversary, x, fake)
    for step in range(1, 20):
        last = train_discriminator(adversary, x, fake, step)
    gap = last["logits_real"] - last["logits_fake"]
    assert gap > 0.5 > first["logits_real"] - first["logits_fake"]
    assert last["discriminator"] < first["discriminator"]
    before, logits = weights(adversary.module), []
    optimizer = torch.optim.SGD(vae.parameters(), lr=1e-2)
    for _ in range(3):
        logits.append(adversary.module(vae(x).reconstruction).mean().item())
        optimizer.zero_grad()
        generator_loss(adversary, vae, x)[1]["adversarial"].backward()
        optimizer.step()
    assert logits[0] < logits[1] < logits[2]
    assert same(weights(adversary.module), before)


@pytest.mark.parametrize("parts", [2, 3, 6])
def test_the_discriminator_s_step_does_not_depend_on_how_the_batch_is_cut(make, parts):
    """R1 and LeCam included, over several steps: LeCam's means move once per step."""
    results = []
    for cut in (1, parts):
        adversary = make(r1=2.0, r1_every=2, lecam=0.5, optimizer={"lr": 1e-3, "name": "sgd"})
        for step in range(3):
            train_discriminator(adversary, samples(6, step), samples(6, 10 + step), step, cut)
        results.append(adversary.tensors())
    for name, whole in results[0].items():
        torch.testing.assert_close(results[1][name], whole, rtol=1e-4, atol=1e-6, msg=name)


def test_the_discriminator_s_gradient_is_that_of_its_loss_and_penalties(make):
    adversary = make(r1=2.0, r1_every=4, lecam=0.5, start=3)
    x, fake = samples(), samples(seed=6)
    adversary.lecam.update(torch.tensor(0.1), torch.tensor(-0.1))
    values = adversary.discriminator_backward(x, fake, torch.tensor(0.5), 7)
    found = gradients(adversary.module)
    adversary.module.zero_grad()
    real, false = adversary.module(x), adversary.module(fake)
    y = x.clone().requires_grad_()
    (by_x,) = torch.autograd.grad(adversary.module(y).mean((1, 2, 3)).sum(), y, create_graph=True)
    squared = by_x.square().sum((1, 2, 3)).mean()
    hinge = 0.5 * (torch.relu(1 - real).mean() + torch.relu(1 + false).mean())
    lecam = torch.relu(real + 0.1).square().mean() + torch.relu(0.1 - false).square().mean()
    (0.5 * (hinge + 0.5 * lecam + 0.5 * 2.0 * 4 * squared)).backward()
    for mine, theirs in zip(found, gradients(adversary.module), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-7)
    assert values["discriminator"].item() == pytest.approx(hinge.item())
    assert values["lecam"].item() == pytest.approx(lecam.item())
    assert values["r1"].item() == pytest.approx(0.5 * squared.item())
    assert values["logits_real"].item() == pytest.approx(real.mean().item())
    assert values["logits_fake"].item() == pytest.approx(false.mean().item())
    assert not any(value.requires_grad for value in values.values())


def test_r1_is_due_in_the_first_adversarial_step_and_every_so_many_from_there(make):
    adversary = make(r1=1.0, r1_every=3, start=2)
    due = [step for step in range(2, 10) if "r1" in adversary.discriminator_backward(samples(), samples(), 1.0, step)]
    assert due == [2, 5, 8]
    assert "r1" not in make().discriminator_backward(samples(), samples(), 1.0, 0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_values_stay_near_and_penalties_stay_exact(make, dtype):
    vae = tiny_vae()
    adversary = make(vae, r1=2.0, weight=1.0)
    x = samples()
    exact = generator_loss(adversary, vae, x)[1] | adversary.discriminator_backward(x, samples(seed=6), 1.0, 0)
    with torch.autocast("cpu", dtype):
        batch = vae(x)
        other = (batch.output - x).square().mean()
        found = adversary.generator_term(batch, other)
        found |= adversary.discriminator_backward(x, samples(seed=6), 1.0, 0)
    assert all(value.dtype == torch.float32 for value in found.values())
    for name, value in exact.items():
        assert found[name].item() == pytest.approx(value.item(), rel=0.1, abs=0.02), name
    assert torch.equal(found["r1"], exact["r1"])


def test_no_step_waits_for_the_device(make, monkeypatch):
    def forbidden(*_):
        raise AssertionError("a host synchronisation in the training step")

    vae = tiny_vae()
    adversary = make(vae, r1=1.0, lecam=0.1)
    for name in ("item", "tolist", "__bool__", "__float__", "__int__"):
        monkeypatch.setattr(torch.Tensor, name, forbidden)
    x = samples()
    batch = vae(x)
    adversary.generator_term(batch, (batch.output - x).square().mean())
    adversary.update(adversary.discriminator_backward(x, batch.reconstruction, torch.tensor(0.5), 0))


def test_a_batch_of_one_and_the_shipped_discriminator(make):
    critic = json.loads((shipped_configs() / "structures" / "patchgan.json").read_text())
    vae = tiny_vae()
    adversary = make(vae, critic=critic, shape=(3, 24, 24), r1=1.0)
    x = torch.nn.functional.interpolate(samples(1), (24, 24))
    other, values = generator_loss(adversary, vae, x)
    (other + values["adversarial_weight"] * values["adversarial"]).backward()
    values |= train_discriminator(adversary, x, vae(x).reconstruction.detach())
    assert all(torch.isfinite(value) for value in values.values())
    assert all(torch.isfinite(p.grad).all() for p in (*vae.parameters(), *adversary.module.parameters()))


def test_its_weights_follow_from_the_seed_alone_and_move_no_generator(make):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one = make(vae := tiny_vae(), r1=1.0)
    torch.set_rng_state(state)
    two, other = make(vae), make(vae, seed=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert same(weights(one.module), weights(two.module))
    assert not same(weights(one.module), weights(other.module))
    assert all(p.grad is None for p in one.module.parameters())
    assert one.module.training


@pytest.mark.parametrize("name", ["adamw", "rmsprop"])
def test_a_resumed_adversary_goes_on_bit_for_bit(make, name):
    options = {"r1": 1.0, "r1_every": 2, "lecam": 0.3, "optimizer": {"name": name}}
    straight, stopped = make(**options), make(**options)
    for step in range(5):
        train_discriminator(straight, samples(4, step), samples(4, 20 + step), step)
    for step in range(3):
        train_discriminator(stopped, samples(4, step), samples(4, 20 + step), step)
    resumed = make(seed=9, **options)
    resumed.restore({key: tensor.clone() for key, tensor in stopped.tensors().items()})
    for step in range(3, 5):
        train_discriminator(resumed, samples(4, step), samples(4, 20 + step), step)
    found, wanted = resumed.tensors(), straight.tensors()
    assert found.keys() == wanted.keys()
    assert {key.partition(".")[0] for key in wanted} == {"net", "optimizer", "lecam"}
    assert all(torch.equal(found[key], tensor) for key, tensor in wanted.items())


def test_a_state_that_does_not_fit_is_refused(make):
    adversary = make(lecam=0.1)
    state = adversary.tensors()
    with pytest.raises(ValueError, match="another discriminator"):
        adversary.restore({key: t for key, t in state.items() if key != "net.0.bias"})
    with pytest.raises(ValueError, match="another discriminator"):
        adversary.restore({**state, "net.0.bias": torch.zeros(3)})
    with pytest.raises(ValueError, match="running means"):
        adversary.restore({key: t for key, t in state.items() if not key.startswith("lecam")})
    with pytest.raises(ValueError, match="LeCam"):
        make().restore(state)
    with pytest.raises(ValueError, match="nix"):
        adversary.restore({**state, "nix.a": torch.zeros(3)})


class Once(torch.autograd.Function):
    """The identity, differentiable once."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return gradient


def test_r1_on_layers_that_cannot_be_differentiated_twice_is_refused_at_once(make, monkeypatch):
    class Layer(nn.Conv2d):
        def forward(self, x):
            return Once.apply(super().forward(x))

    monkeypatch.setattr(
        "flexvae_cli.engine.adversarial.adversary.build_sequence", lambda _: nn.Sequential(Layer(3, 1, 3), nn.SiLU())
    )
    make()
    with pytest.raises(UsageError, match=r"adversarial\.r1: the R1 penalty cannot be computed.*once_differentiable"):
        make(r1=1.0)


@pytest.fixture
def plan(tmp_path):
    (tmp_path / "e.json").write_text(json.dumps(["C2d_3_4_4_4"]))
    (tmp_path / "d.json").write_text(json.dumps(["C2d_4_8_1", "UpS_4", "C2d_8_3_3_1_1"]))
    (tmp_path / "critic.json").write_text(json.dumps(CRITIC))
    path = tmp_path / "c.toml"
    path.write_text(
        '[model]\nencoder = "e.json"\ndecoder = "d.json"\nbottleneck = "None"\n'
        '[data]\nsource = "x"\ninput = "3x16x16"\n'
        '[train]\nrun_dir = "run"\nmax_steps = 99\n[adversarial]\ndiscriminator = "critic.json"\nstart = 5\n'
    )
    return lambda *overrides: make_plan(load_config(path, overrides))


def test_a_plan_s_adversary(plan):
    vae = tiny_vae()
    adversary = make_adversary(plan(), vae)
    assert adversary.active(5)
    assert make_adversary(make_plan(load_config(shipped_configs() / "quickstart.toml")), vae) is None
    again = make_adversary(plan("train.seed=3"), vae)
    assert not same(weights(adversary.module), weights(again.module))


@pytest.mark.parametrize(
    "overrides",
    [
        ["train.freeze=['decoder.*']"],
        ["phase=[{start=50, freeze=['decoder.*']}]"],
        ["train.freeze=['decoder.*']", "phase=[{start=6, freeze=[]}]"],
    ],
)
def test_an_adaptive_weight_without_a_layer_to_measure_it_at_is_refused_before_the_first_step(plan, overrides):
    with pytest.raises(UsageError, match=r"adversarial\.adaptive: no layer of the decoder is trained"):
        make_adversary(plan(*overrides), tiny_vae())
    assert make_adversary(plan(*overrides, "adversarial.adaptive=false"), tiny_vae()) is not None


def test_an_adaptive_weight_through_a_compiled_decoder_is_refused(plan):
    with pytest.raises(UsageError, match=r"adversarial\.adaptive: .*train\.compile"):
        make_adversary(plan("train.compile=true"), tiny_vae())
    assert make_adversary(plan("train.compile=true", "adversarial.adaptive=false"), tiny_vae()) is not None


def test_a_decoder_that_is_frozen_before_the_adversary_starts_is_fine(plan):
    overrides = ["train.freeze=['decoder.*']", "phase=[{start=5, freeze=[]}]"]
    assert make_adversary(plan(*overrides), tiny_vae()) is not None
