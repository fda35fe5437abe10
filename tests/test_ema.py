"""The running mean of the weights."""

from __future__ import annotations

import pytest
import torch
from learners import learner_for, samples


def test_the_mean_follows_its_formula_and_counts_from_the_first_weights(tmp_path):
    learner = learner_for(tmp_path, ema={"decay": 0.8, "warmup": True})
    name = "encoder.0.weight"
    mean = dict(learner.vae.named_parameters())[name].detach().clone()
    for step in range(30):
        learner.step(step, [samples()])
        decay = min(0.8, (1 + step) / (10 + step))
        mean = decay * mean + (1 - decay) * dict(learner.vae.named_parameters())[name].detach()
    assert learner.ema.decay(0) == pytest.approx(0.1)
    assert learner.ema.decay(100) == 0.8
    torch.testing.assert_close(learner.weights()[name], mean, rtol=1e-4, atol=1e-6)


def test_the_mean_is_shown_and_put_back(tmp_path):
    learner = learner_for(tmp_path, ema={"decay": 0.9, "warmup": False})
    learner.step(0, [samples()])
    raw = {name: p.detach().clone() for name, p in learner.vae.named_parameters()}
    with learner.shown() as vae:
        assert not [name for name, p in vae.named_parameters() if torch.equal(p, raw[name])]
    assert all(torch.equal(p, raw[name]) for name, p in learner.vae.named_parameters())


def test_without_a_mean_the_weights_are_the_weights(tmp_path):
    learner = learner_for(tmp_path)
    learner.step(0, [samples()])
    assert all(torch.equal(learner.weights()[name], p) for name, p in learner.vae.named_parameters())
    assert not [name for name in learner.tensors() if name.startswith("weights.")]


def test_what_validation_sees_is_what_the_checkpoint_has(tmp_path):
    learner = learner_for(tmp_path, ema={"decay": 0.9})
    for step in range(3):
        learner.step(step, [samples()])
    with learner.shown() as vae:
        shown = {name: value.clone() for name, value in vae.state_dict().items()}
    saved = learner.weights()
    assert saved.keys() == shown.keys()
    assert all(torch.equal(saved[name], shown[name]) for name in saved)
