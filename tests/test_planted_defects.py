"""The defects that training scripts of autoencoders are known for: each check passes, and fails once its defect is in.

A check is a function that raises AssertionError. A plant puts one defect into the code that the check runs.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from learners import learner_for, samples, state_of
from safetensors.torch import save_file
from test_perceptual import random_weights

from flexvae_cli.engine.adversarial import Adversary
from flexvae_cli.engine.ema import Ema
from flexvae_cli.engine.learner import Learner
from flexvae_cli.engine.losses.perceptual import LPIPS
from flexvae_cli.engine.optimizer import Optimization
from flexvae_cli.engine.parts import restore_parts
from flexvae_cli.engine.schedule import Plateau

START = 2  # the first adversarial step


def learner_of(folder: Path, *, without: str = "", **more) -> Learner:
    """A learner with every kind of term, the adversarial one included; `without` sets the weight of one to 0."""
    (folder / "disc.json").write_text(json.dumps(["C2d_3_8_4_2_1", "SiLU", "C2d_8_1_3_1_1"]))
    weights = folder / "alex.safetensors"
    if not weights.exists():
        save_file(random_weights("alex"), weights)

    def weight(name: str, value: float) -> float:
        return 0.0 if name == without else value

    terms = [
        {"name": "charbonnier", "weight": weight("charbonnier", 1.0)},
        {"name": "fft", "weight": weight("fft", 0.1)},
        {"name": "ffl", "weight": weight("ffl", 1.0)},
        {"name": "gradient", "weight": weight("gradient", 1.0)},
        {"name": "lpips", "weight": weight("lpips", 1.0), "weights": str(weights), "net": "alex"},
    ]
    loss = {
        "alpha": weight("reconstruction", 1.0),
        "kld_weight": weight("kld", 1e-2),
        "ssim_metrics": True,
        "beta": weight("ssim", 0.5),
        "sparse_metrics": without != "sparse",
        "term": terms,
    }
    adversarial = {
        "discriminator": str(folder / "disc.json"),
        "start": START,
        "weight": weight("adversarial", 0.5),
        "lecam": 0.01,
    }
    tables = {"data": {"input": "3x32x32"}, "loss": loss, "adversarial": adversarial, "ema": {"decay": 0.9}, **more}
    return learner_for(folder, **tables)


def pictures() -> torch.Tensor:
    return torch.nn.functional.interpolate(samples(3), scale_factor=2, mode="bilinear")


def gradients_of(learner: Learner, step: int = START) -> torch.Tensor:
    """The gradient by all parameters of the autoencoder of one step, before anything acts on it."""
    kept: list[torch.Tensor] = []
    clip = learner.optimization.clip

    def seen() -> torch.Tensor:
        kept.append(torch.cat([g.flatten().clone() for g in learner.optimization.gradients()]))
        return clip()

    learner.optimization.clip = seen
    learner.step(step, [pictures()])
    return kept[0]


TERMS = ["reconstruction", "kld", "ssim", "sparse", "charbonnier", "fft", "ffl", "gradient", "lpips", "adversarial"]


def every_term_moves_the_gradient(folder: Path) -> None:
    whole = gradients_of(learner_of(folder))
    for term in TERMS:
        part = gradients_of(learner_of(folder, without=term))
        assert (whole - part).norm() > 1e-6 * whole.norm(), f"{term} changes nothing"


def the_gradient_of_a_term_follows_the_images(folder: Path) -> None:
    """A pair of arguments that is swapped or detached makes a gradient that is constant."""
    learner = learner_of(folder)
    term = learner.adversary.generator_term
    seen = []
    for scale in (1.0, -0.5):
        batch = learner.vae(pictures() * scale)
        values = term(batch, learner.loss_at(START)(batch, START)["loss"])
        (found,) = torch.autograd.grad(values["adversarial"], batch.reconstruction, allow_unused=True)
        assert found is not None, "the adversarial term has no gradient"
        seen.append(found)
    assert not torch.allclose(seen[0], seen[1])


def both_nets_learn_from_every_batch(folder: Path) -> None:
    learner = learner_of(folder)
    for step in range(6):
        before, fakes = state_of(learner), []
        handle = learner.adversary.module.register_forward_pre_hook(
            lambda _, inputs, fakes=fakes: fakes.append(inputs[0])
        )
        learner.step(step, [pictures()])
        handle.remove()
        after = state_of(learner)
        moved = {key.partition(".")[0] for key in before if not torch.equal(before[key], after[key])}
        assert "encoder" in moved
        assert ("adversary" in moved) == (step >= START), f"step {step}"
        assert len(fakes) == (3 if step >= START else 0)
        if fakes:
            assert torch.equal(fakes[0].detach(), fakes[2].detach()), "the nets saw two reconstructions"


def the_mean_begins_with_the_weights(folder: Path) -> None:
    learner = learner_of(folder)
    first = {name: p.detach().clone() for name, p in learner.vae.named_parameters()}
    learner.step(0, [pictures()])
    decay = learner.ema.decay(0)
    for name, p in learner.vae.named_parameters():
        torch.testing.assert_close(learner.weights()[name], decay * first[name] + (1 - decay) * p.detach())


def masters_are_fp32(folder: Path) -> None:
    learner = learner_of(folder, train={"precision": "bf16"}, optimizer={"name": "sgd", "lr": 1e-6})
    weight = learner.vae.decoder[0].weight
    before = weight.detach().float().clone()
    for step in range(3):
        learner.step(step, [pictures()])
    assert weight.dtype == torch.float32
    assert 0 < (weight.detach().float() - before).abs().max() < before.abs().max() / 512


def resuming_is_going_on(folder: Path) -> None:
    tables = {"schedule": {"name": "plateau", "patience": 0, "threshold": 0.9}}
    whole, first, second = (learner_of(folder, **tables) for _ in range(3))

    def steps(learner: Learner, start: int, end: int) -> None:
        for step in range(start, end):
            learner.step(step, [pictures()])
            learner.plateau.saw(1.0)

    steps(whole, 0, 6)
    steps(first, 0, 4)
    second.vae.load_state_dict(first.weights())
    restore_parts(second.parts(), first.tensors(), Path("x"))
    steps(second, 4, 6)
    wanted, found = state_of(whole), state_of(second)
    wrong = [name for name in wanted if not torch.equal(wanted[name], found[name])]
    assert not wrong, wrong[:3]


def forget(kind: type) -> Callable[[pytest.MonkeyPatch], None]:
    return lambda patch: patch.setattr(kind, "restore", lambda self, tensors: None)


def no_gradient(patch: pytest.MonkeyPatch) -> None:
    forward = LPIPS.forward
    patch.setattr(LPIPS, "forward", lambda self, *a: torch.no_grad()(forward)(self, *a))


def swapped(patch: pytest.MonkeyPatch) -> None:
    """The generator's loss looks at the samples instead of their reconstructions."""

    def term(self, batch, other):
        loss = -self.module(batch.x).mean() + 0.0 * batch.reconstruction.sum()
        return {"adversarial": loss, "adversarial_weight": torch.tensor(0.5)}

    patch.setattr(Adversary, "generator_term", term)


def alternate(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Adversary, "active", lambda self, step: step >= START and step % 2 == 0)


def early(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Adversary, "active", lambda self, step: step > START)


def another_pass(patch: pytest.MonkeyPatch) -> None:
    backward = Adversary.discriminator_backward
    patch.setattr(Adversary, "discriminator_backward", lambda self, x, y, *a: backward(self, x, y * 0.9, *a))


def mean_of_nothing(patch: pytest.MonkeyPatch) -> None:
    init = Ema.__init__

    def built_early(self, module, table):
        init(self, module, table)
        self.mean = {name: torch.zeros_like(value) for name, value in self.mean.items()}

    patch.setattr(Ema, "__init__", built_early)


def cast_away(patch: pytest.MonkeyPatch) -> None:
    init = Optimization.__init__

    def casting(self, module, *a):
        module.to(torch.bfloat16)
        init(self, module, *a)

    patch.setattr(Optimization, "__init__", casting)


CHECKS = [
    every_term_moves_the_gradient,
    the_gradient_of_a_term_follows_the_images,
    both_nets_learn_from_every_batch,
    the_mean_begins_with_the_weights,
    masters_are_fp32,
    resuming_is_going_on,
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_trainer_is_sound(tmp_path, check):
    check(tmp_path)


@pytest.mark.parametrize(
    ("check", "plant"),
    [
        (every_term_moves_the_gradient, no_gradient),
        (the_gradient_of_a_term_follows_the_images, swapped),
        (both_nets_learn_from_every_batch, alternate),
        (both_nets_learn_from_every_batch, early),
        (both_nets_learn_from_every_batch, another_pass),
        (the_mean_begins_with_the_weights, mean_of_nothing),
        (masters_are_fp32, cast_away),
        (resuming_is_going_on, forget(Optimization)),
        (resuming_is_going_on, forget(Ema)),
        (resuming_is_going_on, forget(Adversary)),
        (resuming_is_going_on, forget(Plateau)),
    ],
)
def test_a_planted_defect_is_caught(tmp_path, monkeypatch, check, plant):
    plant(monkeypatch)
    with pytest.raises((AssertionError, RuntimeError)):  # some defects do not even run
        check(tmp_path)
