"""Numbers that are not finite: the update is skipped, counted, told of, and can be taken again under watch."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from learners import learner_for, samples, state_of

from flexvae_cli.config import Config
from flexvae_cli.config.settings import Settings
from flexvae_cli.engine import events as e
from flexvae_cli.engine.health import Health
from flexvae_cli.engine.learner import Learner
from flexvae_cli.engine.loop import train
from flexvae_cli.engine.replay import replay
from flexvae_cli.engine.rundir import RunDirectory
from flexvae_cli.engine.starting import gather
from flexvae_cli.errors import DivergedError, ModelError
from flexvae_cli.plan import make_plan


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "nadam", "radam", "rmsprop", "adafactor"])
@pytest.mark.parametrize("spoilt", ["loss", "gradient"])
def test_a_step_that_is_not_finite_changes_nothing(tmp_path, name, spoilt):
    learner = learner_for(tmp_path, optimizer={"name": name}, ema={"decay": 0.9, "warmup": False})
    learner.step(0, [samples()])
    before = state_of(learner)
    x = samples()
    if spoilt == "loss":
        x[0, 0, 0, 0] = torch.nan
    else:
        weight = learner.vae.decoder[0].weight
        handle = weight.register_hook(lambda gradient: gradient * torch.inf)
    values = learner.step(1, [x])
    assert not torch.isfinite(values["gradient_norm"])
    after = state_of(learner)
    raw = [n for n in before if not n.startswith("health.")]
    assert len([n for n in raw if n.startswith("optimizer.")]) > 10 or name == "sgd"
    assert not [n for n in raw if not torch.equal(before[n], after[n])]
    assert learner.numbers()["skipped"] == 1
    if spoilt == "gradient":
        handle.remove()
    values = learner.step(2, [samples()])
    assert torch.isfinite(values["gradient_norm"])
    assert not all(torch.equal(after[n], state_of(learner)[n]) for n in raw)
    assert learner.health.skipped_since() == [1]
    assert learner.health.skipped_since() == []


def test_a_few_skipped_updates_are_borne_and_many_end_the_run():
    health = Health()
    for step in range(9):
        health.add(step, torch.tensor(True))
    health.check(9)
    health.add(9, torch.tensor(True))
    with pytest.raises(DivergedError, match="10 times in a row"):
        health.check(10)
    health = Health()
    for step in range(3000):
        health.add(step, torch.tensor(step % 100 == 0))
        health.check(step + 1)
    assert health.skipped_since() == list(range(2000, 3000, 100))
    for step in (3001, 3002):
        health.add(step, torch.tensor(True))
    with pytest.raises(DivergedError, match="11 times in the last 1,000"):
        health.check(3003)


def test_an_overflow_of_the_scale_is_no_fault_of_the_run(tmp_path):
    learner = learner_for(tmp_path)
    scale = learner.precision.scale
    scale.enabled, scale.value = True, torch.tensor(2.0**16)
    weight = learner.vae.decoder[0].weight
    handle = weight.register_hook(lambda gradient: gradient * torch.inf)
    for step in range(16):
        learner.step(step, [samples(1)])
    assert scale.value == 1.0
    assert "skipped" not in learner.numbers()
    learner.step(16, [samples(1)])
    assert learner.numbers()["skipped"] == 1  # with the scale at 1 it is one
    handle.remove()


def test_scaling_the_loss_changes_no_gradient(tmp_path):
    plain, scaled = learner_for(tmp_path), learner_for(tmp_path)
    scaled.precision.scale.enabled, scaled.precision.scale.value = True, torch.tensor(1024.0)
    for learner in (plain, scaled):
        learner.step(0, samples().split(2))
    for a, b in zip(plain.vae.parameters(), scaled.vae.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


def plan_of(folder: Path, **train: object):
    (folder / "e.json").write_text(json.dumps(["C2d_3_8_4_4", "SiLU", "C2d_8_4_1"]))
    (folder / "d.json").write_text(json.dumps(["C2d_2_8_1", {"residual": ["SiLU"]}, "UpS_4", "C2d_8_3_3_1_1"]))
    document = {
        "model": {"encoder": str(folder / "e.json"), "decoder": str(folder / "d.json")},
        "data": {"source": "builtin:scenery", "input": "3x16x16", "validation": 0, "workers": 0},
        "optimizer": {"name": "sgd", "lr": 1e8, "clip_norm": 0.0},
        "schedule": {"name": "constant"},
        "train": {
            "run_dir": str(folder / "run"),
            "max_steps": 40,
            "device": "cpu",
            "preview_every": 0,
            "allocator": "system",
            **train,
        },
    }
    return make_plan(Config(Settings.model_validate(document), folder / "c.toml", document))


def run(plan) -> list[e.Event]:
    found = []
    with RunDirectory(plan.settings.train.run_dir, resume=False) as held:
        try:
            for event in train(plan, gather(plan), held, resume=False):
                found.append(event)
        except DivergedError as error:
            found.append(error)
    return found


def test_a_run_that_diverges_ends_and_says_where_and_replay_names_the_layer(tmp_path):
    events = run(plan_of(tmp_path))
    assert isinstance(events[-1], DivergedError)
    assert events[-1].code == 6
    skipped = [event for event in events if isinstance(event, e.Skipped)]
    assert len(skipped) >= 10
    report = json.loads(skipped[0].path.read_text())
    assert report["step"] == skipped[0].step - 1
    assert len(report["micro_batches"][0]) == 8
    told = []
    found = replay(skipped[0].path, None, lambda done, total: told.append((done, total)))
    assert found.step == skipped[0].step
    assert found.started_from.name == "step-00000000"
    assert told[-1] == (skipped[0].step - 1, skipped[0].step)
    assert found.finding.layer.startswith(("encoder.", "decoder.", "bottleneck", "reconstruction"))
    assert bool(found.finding.code) == (found.finding.what != "value")
    assert found.images == report["micro_batches"][0]


def test_replay_of_a_step_that_was_sound_says_so(tmp_path):
    events = run(plan_of(tmp_path))
    path = next(event.path for event in events if isinstance(event, e.Skipped))
    sound = path.with_name("nan-step-00000000.json")
    sound.write_text(json.dumps({**json.loads(path.read_text()), "step": 0}))
    assert replay(sound, None, lambda *_: None).finding is None


@pytest.mark.parametrize("content", ["{}", "[]", "nonsense", '{"format": 1, "step": "x"}', '{"format": 9, "step": 3}'])
def test_what_is_no_report_is_refused(tmp_path, content):
    path = tmp_path / "nan-step-00000003.json"
    path.write_text(content)
    with pytest.raises(ModelError):
        replay(path, None, lambda *_: None)


def test_replay_needs_a_checkpoint_before_the_step(tmp_path):
    events = run(plan_of(tmp_path))
    path = next(event.path for event in events if isinstance(event, e.Skipped))
    shutil.rmtree(tmp_path / "run/ckpt")
    with pytest.raises(ModelError, match="no checkpoint before step"):
        replay(path, None, lambda *_: None)


def test_the_first_layer_is_named_whether_output_or_gradient(tmp_path, monkeypatch):
    """A gradient that is spoilt in one layer alone is found there, not where it shows first."""
    from flexvae_cli.engine.replay import Watch

    learner = learner_for(tmp_path)
    inner = learner.vae.encoder[1].conv_1
    forward = inner.forward

    def spoilt(x):
        y = forward(x)
        y.register_hook(lambda gradient: gradient / 0)
        return y

    monkeypatch.setattr(inner, "forward", spoilt)
    watch = Watch()
    with watch.over(learner, {"encoder.1": "VAERB_32_32"}):
        learner.step(0, samples(4).split(2))
    assert watch.found.layer.startswith("encoder.1.")
    assert (watch.found.code, watch.found.micro_batch) == ("VAERB_32_32", 0)
    assert "gradient" in watch.found.what
    assert isinstance(learner, Learner)


def test_the_command_line_leaves_with_6_and_the_log_says_why(tmp_path, flexvae):
    plan_of(tmp_path)
    (tmp_path / "c.toml").write_text(
        '[model]\nencoder = "e.json"\ndecoder = "d.json"\n[data]\nsource = "builtin:scenery"\ninput = "3x16x16"\n'
        'validation = 0\nworkers = 0\n[optimizer]\nname = "sgd"\nlr = 1e8\nclip_norm = 0.0\n'
        '[train]\nrun_dir = "run"\nmax_steps = 40\ndevice = "cpu"\npreview_every = 0\nallocator = "system"\n'
    )
    ended = flexvae("train", "--config", tmp_path / "c.toml")
    assert ended.exit_code == 6
    assert "training diverged" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert (tmp_path / "run/log.txt").read_text().splitlines()[-1].startswith("ended by an error: training diverged")
    report = sorted((tmp_path / "run").glob("nan-step-*.json"))[0]
    again = flexvae("replay", report, "--json")
    assert again.exit_code == 0
    assert json.loads(again.stdout)["finding"]["layer"]


def test_a_skipped_batch_leaves_no_trace_in_running_statistics(tmp_path):
    (tmp_path / "e.json").write_text('["C2d_3_32_4_4", "BN_32", "C2d_32_4_1"]')
    learner = learner_for(tmp_path)
    learner.step(0, [samples()])
    before = state_of(learner)
    x = samples()
    x[0, 0, 0, 0] = torch.inf
    learner.step(1, [x])
    assert "encoder.1.running_mean" in {name.replace("norm.", "") for name in before} or any(
        "running_mean" in name for name in before
    )
    assert not [n for n in before if "health" not in n and not torch.equal(before[n], state_of(learner)[n])]


def test_momentum_begins_at_zero_though_the_first_step_is_skipped(tmp_path):
    tables = {"optimizer": {"name": "sgd", "momentum": 0.9, "clip_norm": 0.0}}
    skipped, plain = learner_for(tmp_path, **tables), learner_for(tmp_path, **tables)
    spoilt = samples()
    spoilt[0, 0, 0, 0] = torch.nan
    skipped.step(0, [spoilt])
    for learner in (skipped, plain):
        learner.step(1, [samples()])
        learner.step(2, [samples()])
    wanted, found = state_of(plain), state_of(skipped)
    assert not [n for n in wanted if "health" not in n and not torch.equal(wanted[n], found[n])]


def test_a_loss_that_is_not_finite_is_named_and_not_the_net(tmp_path, monkeypatch):
    from flexvae_cli.engine.replay import Watch

    learner = learner_for(tmp_path, loss={"ssim_metrics": True})
    loss = learner.loss_at(0)
    place = [term.name for term in loss.terms].index("ssim")
    spoilt = list(loss.functions)
    spoilt[place] = lambda batch, inner=spoilt[place]: inner(batch) / 0
    monkeypatch.setattr(loss, "functions", tuple(spoilt))
    watch = Watch()
    with watch.over(learner, {}):
        learner.step(0, samples(4).split(2))
    assert (watch.found.layer, watch.found.what, watch.found.micro_batch) == ("ssim", "value", 0)
    assert learner.loss_at(0) is loss
