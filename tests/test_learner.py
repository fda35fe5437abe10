"""The training step: what it depends on, and what it does not."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from learners import learner_for, samples, state_of

from flexvae_cli.engine.parts import restore_parts
from flexvae_cli.errors import ModelError, UsageError

PLAIN = {"model": {"bottleneck": "None"}, "optimizer": {"clip_norm": 0.0}}


@pytest.mark.parametrize("sizes", [[5], [3, 2], [2, 2, 1], [1] * 5])
def test_the_gradient_is_that_of_the_whole_batch_however_it_is_cut(tmp_path, sizes):
    """Without noise: a last, smaller micro-batch weighs as many samples as it has."""
    learner = learner_for(tmp_path, **PLAIN)
    reference = copy.deepcopy(learner.vae)
    loss = torch.nn.functional.mse_loss(reference(samples()).output, samples())
    loss.backward()
    values = learner.step(0, samples().split(sizes))
    assert values["loss"].item() == pytest.approx(loss.item(), rel=1e-5)
    for mine, theirs in zip(learner.vae.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-7)


def test_a_step_depends_on_seed_and_step_not_on_the_generators(tmp_path):
    results = []
    for noise in (1, 2):
        learner = learner_for(tmp_path)
        torch.manual_seed(noise)
        learner.step(0, samples().split(3))
        results.append(state_of(learner))
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])
    other = learner_for(tmp_path)
    other.step(1, samples().split(3))
    assert not all(torch.equal(results[0][name], p) for name, p in other.vae.named_parameters())


def test_micro_batches_draw_different_noise(tmp_path):
    learner = learner_for(tmp_path)
    drawn = []
    learner.vae.bottleneck.register_forward_hook(
        lambda _, inputs, out: drawn.append((out.z - out.posterior.mean).detach())
    )
    x = samples(1)
    learner.step(0, [x, x])
    assert not torch.equal(drawn[0], drawn[1])


def test_the_gradient_is_clipped_and_its_norm_before_that_is_told(tmp_path):
    learner = learner_for(tmp_path, **{**PLAIN, "optimizer": {"clip_norm": 1e-3}})
    values = learner.step(0, [samples()])
    norm = torch.stack([p.grad.norm() for p in learner.vae.parameters()]).norm().item()
    assert norm == pytest.approx(1e-3, rel=1e-3)
    assert values["gradient_norm"].item() > 1e-2


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_the_step_does_not_wait_for_the_device(tmp_path, monkeypatch, name):
    def forbidden(*_):
        raise AssertionError("a host synchronisation in the training step")

    tables = {
        "optimizer": {"name": name},
        "loss": {"sparse_metrics": True, "ssim_metrics": True},
        "ema": {"decay": 0.9},
        "train": {"accumulate": 2, "freeze": ["encoder.0.*"]},
    }
    learner = learner_for(tmp_path, **tables)
    for each in ("item", "tolist", "__bool__", "__float__", "__int__"):
        monkeypatch.setattr(torch.Tensor, each, forbidden)
    learner.step(0, samples().split(3))
    learner.step(1, samples().split(3))


def test_evaluation_takes_the_mean_and_training_draws(tmp_path):
    vae = learner_for(tmp_path).vae.train()
    x = samples(1)
    with torch.no_grad():
        assert not torch.equal(vae(x).encoded.z, vae(x).encoded.z)
        vae.eval()
        encoded = vae(x).encoded
    assert torch.equal(encoded.z, encoded.posterior.mean)
    assert encoded.posterior.log_variance.min() >= -30


OPTIMIZERS = ["adamw", "adam", "sgd", "nadam", "radam", "rmsprop", "adafactor"]
SCHEDULES = [
    {"name": "constant", "warmup_steps": 3},
    {"name": "cosine", "final": 0.1},
    {"name": "step", "step_size": 2},
    {"name": "one-cycle"},
    {"name": "plateau", "patience": 0, "threshold": 0.9},
]
MATRIX = [
    *({"optimizer": {"name": name, "momentum": 0.9 if name in ("sgd", "rmsprop") else 0.0}} for name in OPTIMIZERS),
    *({"schedule": schedule} for schedule in SCHEDULES),
    {"ema": {"decay": 0.9}},
    {"ema": {"decay": 0.9, "warmup": False}, "train": {"precision": "bf16", "norm_dtype": "input"}},
    {"train": {"precision": "bf16"}},
    {"train": {"activation_checkpointing": "blocks"}},
    {"train": {"freeze": ["encoder.*"]}, "phase": [{"start": 4, "freeze": ["decoder.0.*"], "loss": {"alpha": 2.0}}]},
    {"optimizer": {"group": [{"match": ["decoder.*"], "lr_factor": 0.1, "weight_decay": 0.3}]}},
    {"loss": {"reconstruction": "bce"}},
]


@pytest.mark.parametrize("tables", MATRIX, ids=str)
@pytest.mark.parametrize("parts", [1, 3])
def test_going_on_from_saved_tensors_is_going_on(tmp_path, tables, parts):
    """The resume matrix: two steps, all tensors to a fresh learner, three more: bit for bit the same as five."""
    whole, first, second = (learner_for(tmp_path, **tables) for _ in range(3))
    cut = samples(6).split(6 // parts)
    with torch.no_grad():
        for parameter in second.vae.parameters():  # what is not restored shows
            parameter.add_(1.0)

    def steps(learner, numbers):
        for step in numbers:
            learner.step(step, cut)
            learner.plateau.saw(1.0 + step % 2)

    steps(whole, range(6))
    steps(first, range(3))
    second.vae.load_state_dict(first.weights())
    restore_parts(second.parts(), first.tensors(), Path("x"))
    steps(second, range(3, 6))
    wanted, found = state_of(whole), state_of(second)
    assert wanted.keys() == found.keys()
    assert not [name for name in wanted if not torch.equal(wanted[name], found[name])]


def test_a_state_that_does_not_fit_is_refused(tmp_path):
    learner = learner_for(tmp_path, ema={"decay": 0.9})
    learner.step(0, [samples()])
    good = learner.tensors()
    for bad in (
        {"nothing.of.ours": torch.zeros(1)},
        {"optimizer.encoder.9.weight.exp_avg": torch.zeros(1)},
        {"optimizer.encoder.0.weight.exp_avg": torch.zeros(10_000)},
        {"weights.encoder.0.weight": torch.zeros(3)},
        {"weights.more": torch.zeros(3)},
        {"health.window": torch.zeros(3)},
        {"scale.value": torch.zeros(1)},
    ):
        with pytest.raises(ModelError) as caught:
            restore_parts(learner.parts(), {**good, **bad}, tmp_path / "training.safetensors")
        assert "training.safetensors" in str(caught.value)


def test_parameter_groups(tmp_path):
    group = {"match": ["decoder.0.*"], "lr_factor": 0.5}
    learner = learner_for(tmp_path, optimizer={"weight_decay": 0.2, "group": [group]})
    learner.step(0, [samples()])
    found = {
        id(p): (g["lr"], g["weight_decay"]) for g in learner.optimization.optimizer.param_groups for p in g["params"]
    }
    named = {name: found[id(p)] for name, p in learner.vae.named_parameters()}
    assert named["encoder.0.weight"] == (0.01, 0.2)
    assert named["encoder.0.bias"] == (0.01, 0.0)
    assert named["encoder.1.norm_1.weight"] == (0.01, 0.0)
    assert named["decoder.0.weight"] == (0.005, 0.2)
    assert named["decoder.0.bias"] == (0.005, 0.0)


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        (
            {"optimizer": {"group": [{"match": ["decodr.*"]}]}},
            "optimizer.group[0].match: 'decodr.*' matches no parameter",
        ),
        ({"train": {"freeze": ["enc.*"]}}, "train.freeze: 'enc.*' matches no parameter"),
        ({"train": {"freeze": ["*"]}}, "train.freeze: freezes every parameter"),
        ({"phase": [{"start": 5, "freeze": ["enc.*"]}]}, "phase[0].freeze: 'enc.*' matches no parameter"),
        ({"train": {"activation_checkpointing": ["encoder.7"]}}, "the net has no entry 'encoder.7'"),
        ({"train": {"precision": "tf32"}}, "'cpu' has no tf32"),
    ],
)
def test_what_cannot_be_honoured_is_refused_before_the_first_step(tmp_path, tables, said):
    with pytest.raises(UsageError) as caught:
        learner_for(tmp_path, **tables)
    (problem,) = caught.value.problems
    assert said in f"{problem.where}: {problem.what}"


def test_fp16_is_refused_on_a_cpu_without_it(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_fp16_supported", lambda: False)
    with pytest.raises(UsageError, match="no fp16 arithmetic"):
        learner_for(tmp_path, train={"precision": "fp16"})


def test_frozen_parts_stay_as_they_are_and_in_evaluation_mode(tmp_path):
    learner = learner_for(tmp_path, train={"freeze": ["encoder.*"]}, phase=[{"start": 2, "freeze": []}])
    before = state_of(learner)
    for step in range(2):
        learner.step(step, [samples()])
    changed = {name for name, p in learner.vae.named_parameters() if not torch.equal(before[name], p)}
    assert changed == {name for name, _ in learner.vae.named_parameters() if name.startswith("decoder.")}
    assert not learner.vae.encoder.training
    assert learner.vae.decoder.training
    learner.step(2, [samples()])
    assert learner.vae.encoder.training
    changed = [name for name, p in learner.vae.named_parameters() if torch.equal(before[name], p)]
    assert not changed


def test_phases_change_the_loss_at_their_step_exactly(tmp_path):
    learner = learner_for(tmp_path, **PLAIN, phase=[{"start": 2, "loss": {"alpha": 3.0}}])
    ratios = []
    for step in range(4):
        values = learner.step(step, [samples()])
        ratios.append(round((values["loss"] / values["reconstruction"]).item(), 4))
    assert ratios == [1.0, 1.0, 3.0, 3.0]
