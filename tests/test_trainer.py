"""What a run looks at between its steps: the best validation, phases, the clock, EMA, a scheduler that remembers."""

from __future__ import annotations

import json
import math

import pytest
import torch

from flexvae_cli.config import Config
from flexvae_cli.config.settings import Settings
from flexvae_cli.engine import events as e
from flexvae_cli.engine.checkpoint import newest_checkpoint
from flexvae_cli.engine.loop import train
from flexvae_cli.engine.modelfiles import find_model
from flexvae_cli.engine.optimizer import _laid_out_as
from flexvae_cli.engine.rundir import RunDirectory
from flexvae_cli.engine.starting import gather
from flexvae_cli.engine.trainer import Best
from flexvae_cli.errors import UsageError
from flexvae_cli.plan import make_plan


def plan_of(folder, run="run", **tables):
    (folder / "e.json").write_text(json.dumps(["C2d_3_8_4_4", "SiLU", "C2d_8_4_1"]))
    (folder / "d.json").write_text(json.dumps(["C2d_2_8_1", "SiLU", "UpS_4", "C2d_8_3_3_1_1"]))
    base = {
        "model": {"encoder": str(folder / "e.json"), "decoder": str(folder / "d.json")},
        "data": {"source": "builtin:scenery/val", "input": "3x16x16", "resize": "none", "workers": 0},
        "optimizer": {"lr": 3e-3},
        "train": {
            "run_dir": str(folder / run),
            "max_steps": 12,
            "batch_size": 4,
            "accumulate": 2,
            "log_every": 3,
            "validate_every": 3,
            "preview_every": 0,
            "checkpoint_every": 5,
            "device": "cpu",
            "allocator": "system",
        },
    }
    document = {**base, **{k: {**base.get(k, {}), **v} if isinstance(v, dict) else v for k, v in tables.items()}}
    return make_plan(Config(Settings.model_validate(document), folder / "c.toml", document))


def run(plan, *, resume=False, until=None):
    found = []
    with RunDirectory(plan.settings.train.run_dir, resume=resume) as held:
        for event in train(plan, gather(plan), held, resume=resume):
            found.append(event)
            if until and until(event):
                break
    return found


def state(path):
    checkpoint, _ = newest_checkpoint(path)
    return checkpoint.step, {**checkpoint.weights(), **checkpoint.training()}


def same(a, b):
    return a[0] == b[0] and a[1].keys() == b[1].keys() and all(torch.equal(a[1][k], b[1][k]) for k in a[1])


FULL = {
    "ema": {"decay": 0.9},
    "train": {"keep_best": "psnr", "freeze": ["encoder.2.bias"]},
    "schedule": {"name": "plateau", "patience": 0, "threshold": 0.2},
    "phase": [
        {"start": 4, "freeze": ["encoder.*"], "loss": {"alpha": 2.0}},
        {"start": 8, "input": "3x32x24", "freeze": []},
    ],
}


@pytest.mark.parametrize("stop", [1, 4, 6, 8, 9, 11])
def test_everything_at_once_resumes_bit_for_bit(tmp_path, stop):
    plan, other = plan_of(tmp_path, **FULL), plan_of(tmp_path, "whole", **FULL)
    run(other)
    run(plan, until=lambda event: isinstance(event, e.Advanced) and event.step == stop)
    events = run(plan, resume=True)
    assert isinstance(events[-1], e.Finished)
    assert same(state(tmp_path / "run"), state(tmp_path / "whole"))
    assert (tmp_path / "run/best").resolve().name == (tmp_path / "whole/best").resolve().name


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_run_in_channels_last_resumes_bit_for_bit(tmp_path, optimizer):
    """Fused optimizers go through a state as it lies in memory: it has to lie as its parameter does."""
    tables = {"optimizer": {"name": optimizer, "momentum": 0.9 if optimizer == "sgd" else 0.0}}
    plan = plan_of(tmp_path, train={"layout": "channels-last"}, **tables)
    whole = plan_of(tmp_path, train={"layout": "channels-last", "run_dir": str(tmp_path / "whole")}, **tables)
    run(whole)
    run(plan, until=lambda event: isinstance(event, e.Saved) and event.step == 5)
    run(plan, resume=True)
    assert same(state(tmp_path / "run"), state(tmp_path / "whole"))


def test_a_state_is_copied_only_into_another_layout():
    parameter = torch.empty(2, 3, 4, 5).to(memory_format=torch.channels_last)
    fits, other, step = torch.rand_like(parameter), torch.rand(2, 3, 4, 5), torch.tensor(1.0)
    assert _laid_out_as(parameter, fits) is fits
    assert _laid_out_as(parameter, step) is step
    copied = _laid_out_as(parameter, other)
    assert (copied.stride(), torch.equal(copied, other)) == (parameter.stride(), True)


def test_phases_train_on_their_own_size(tmp_path, monkeypatch):
    from flexvae_cli.engine.learner import Learner

    sizes, step = [], Learner.step
    monkeypatch.setattr(
        Learner, "step", lambda self, n, xs, *a: (sizes.append(tuple(xs[0].shape[1:])), step(self, n, xs, *a))[1]
    )
    run(plan_of(tmp_path, **FULL))
    assert sizes == [(3, 16, 16)] * 8 + [(3, 32, 24)] * 4


@pytest.mark.parametrize(
    ("phase", "said"),
    [
        ([{"start": 5}, {"start": 5}], "phase[1].start: starts at step 5, not behind the one before it"),
        ([{"start": 12}], "phase[0].start: starts at step 12, behind train.max_steps"),
        ([{"start": 3, "input": "1x16x16"}], "phase[0].input: wants 3 channels"),
        ([{"start": 3, "input": "3x18x16"}], "(at phase[0].input)"),
        ([{"start": 3, "loss": {"reconstruction": "bce"}}], "phase[0].loss.reconstruction: a run stays with bce"),
        ([{"start": 3, "loss": {"reconstruction": "mss"}}], "phase[0].loss"),
    ],
)
def test_phases_that_cannot_be(tmp_path, phase, said):
    with pytest.raises(UsageError) as caught:
        plan_of(tmp_path, phase=phase)
    assert any(said in f"{p.where}: {p.what}" for p in caught.value.problems), caught.value.problems


def test_the_best_checkpoint_is_kept_and_linked(tmp_path):
    plan = plan_of(tmp_path, train={"keep_best": "psnr", "max_steps": 30}, optimizer={"lr": 0.3})
    events = run(plan)
    scores = {event.step: event.values["psnr"] for event in events if isinstance(event, e.Validated)}
    best = max(scores, key=scores.__getitem__)
    kept = {int(p.name[5:]) for p in (tmp_path / "run/ckpt").iterdir()}
    assert kept == {25, 30, best}
    assert (tmp_path / "run/best").is_symlink()
    assert find_model(tmp_path / "run/best").path.resolve().name == f"step-{best:08d}"
    assert find_model(tmp_path / "run").path.name == "step-00000030"


def test_the_best_in_each_sense():
    best = Best("loss")
    assert [best.saw(i, {"loss": v}) for i, v in enumerate([math.nan, 2.0, 3.0, math.inf, 1.0])] == [0, 1, 0, 0, 1]
    best = Best("ssim")
    assert [best.saw(i, {"ssim": v}) for i, v in enumerate([0.2, 0.1, 0.3])] == [1, 0, 1]
    assert not best.saw(9, {"psnr": 3.0})
    again = Best("ssim")
    again.restore(best.tensors())
    assert (again.value, again.step) == (0.3, 2)
    assert not Best("off").saw(0, {"loss": 1.0})


def test_a_checkpoint_by_the_clock(tmp_path):
    plan = plan_of(tmp_path, train={"checkpoint_every": 1000, "checkpoint_minutes": 1e-9})
    saved = [event.step for event in run(plan) if isinstance(event, e.Saved)]
    assert saved == list(range(13))
    plan = plan_of(tmp_path, "other", train={"checkpoint_every": 1000, "checkpoint_minutes": 60})
    assert [event.step for event in run(plan) if isinstance(event, e.Saved)] == [0, 12]


def test_the_model_file_has_the_mean_and_says_so(tmp_path):
    run(plan_of(tmp_path, ema={"decay": 0.9}))
    checkpoint, _ = newest_checkpoint(tmp_path / "run")
    raw = {n.removeprefix("weights."): t for n, t in checkpoint.training().items() if n.startswith("weights.")}
    assert raw.keys() == checkpoint.weights().keys()
    assert not any(torch.equal(raw[n], checkpoint.weights()[n]) for n in raw)
    assert find_model(tmp_path / "run").model["ema"] == 0.9


def test_the_plateau_lowers_the_rate(tmp_path):
    schedule = {"name": "plateau", "patience": 0, "threshold": 1.0, "gamma": 0.5}
    logged = [x.values["lr"] for x in run(plan_of(tmp_path, schedule=schedule)) if isinstance(x, e.Logged)]
    assert logged == pytest.approx([3e-3, 3e-3, 1.5e-3, 0.75e-3])  # the first loss is the lowest so far


def test_a_run_that_the_disk_cannot_hold_is_refused_before_it_writes(tmp_path, monkeypatch):
    from collections import namedtuple

    from flexvae_cli.engine import files
    from flexvae_cli.errors import ResourceError

    plan = plan_of(tmp_path)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: usage(10**9, 10**9, 1000))
    with pytest.raises(ResourceError, match="free"):
        run(plan)
    assert not (tmp_path / "run/config.json").exists()


def test_a_signal_during_validation_saves_though_no_checkpoint_is_due(tmp_path, monkeypatch):
    import os
    import signal

    from flexvae_cli.engine.data import dataset

    tables = {"data": {"validation": 0.5}, "train": {"validate_every": 3, "checkpoint_every": 10}}
    plan, whole = plan_of(tmp_path, **tables), plan_of(tmp_path, "whole", **tables)
    read, count = dataset.EvaluationImages.__getitem__, []

    def interrupted(self, index):
        count.append(index)
        if len(count) == 7:  # five are for the strip
            os.kill(os.getpid(), signal.SIGINT)
        return read(self, index)

    with monkeypatch.context() as patch:
        patch.setattr(dataset.EvaluationImages, "__getitem__", interrupted)
        events = run(plan)
    assert (events[-1].step, events[-1].signal) == (3, signal.SIGINT)
    assert state(tmp_path / "run")[0] == 3
    resumed = run(plan, resume=True)
    assert [x.step for x in resumed if isinstance(x, e.Validated)] == [3, 6, 9, 12]
    run(whole)
    assert same(state(tmp_path / "run"), state(tmp_path / "whole"))


def test_parameters_that_learn_later_have_their_momentum_then(tmp_path):
    optimizer = {"name": "sgd", "momentum": 0.9, "lr": 1e-3}
    plan = plan_of(tmp_path, optimizer=optimizer, train={"freeze": ["encoder.*"]}, phase=[{"start": 4, "freeze": []}])
    assert isinstance(run(plan)[-1], e.Finished)


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ({"data": {"validation": 0}, "schedule": {"name": "plateau"}}, "schedule.name: looks at validations"),
        ({"data": {"validation": 0}, "train": {"keep_best": "psnr"}}, "train.keep_best: needs validations"),
        (
            {"phase": [{"start": 3, "input": "3x176x176", "loss": {"term": [{"name": "msssim"}]}}]},
            "phase[0].loss.term[0]: msssim wants sides of at least 161 pixels",
        ),
    ],
)
def test_settings_without_effect_or_sense_are_refused(tmp_path, tables, said):
    with pytest.raises(UsageError) as caught:
        plan_of(tmp_path, **tables)
    assert any(f"{p.where}: {p.what}".startswith(said) for p in caught.value.problems), caught.value.problems


def test_a_mistake_is_told_once_however_many_phases_there_are(tmp_path):
    with pytest.raises(UsageError) as caught:
        plan_of(tmp_path, loss={"reconstruction": "msee"}, phase=[{"start": 3}, {"start": 5}])
    assert len(caught.value.problems) == 1


def test_a_phase_behind_the_last_epoch_is_refused(tmp_path):
    with pytest.raises(UsageError) as caught:
        run(plan_of(tmp_path, train={"max_steps": None, "epochs": 1}, phase=[{"start": 1000}]))
    assert caught.value.problems[0].where == "phase[0].start"
