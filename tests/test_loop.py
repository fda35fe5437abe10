"""Training from a plan to events, in this process: what it writes, and that stopping changes nothing."""

from __future__ import annotations

import json
import os
import shutil
import signal

import pytest
import torch
from PIL import Image

from flexvae_cli.config import load_config
from flexvae_cli.engine import events as e
from flexvae_cli.engine.checkpoint import newest_checkpoint
from flexvae_cli.engine.events import Event
from flexvae_cli.engine.loop import train
from flexvae_cli.engine.records import recorded
from flexvae_cli.engine.rundir import RunDirectory
from flexvae_cli.engine.starting import gather
from flexvae_cli.errors import DataError, DivergedError, ModelError, UsageError
from flexvae_cli.plan import make_plan

CONFIG = """
[model]
encoder = "e.json"
decoder = "d.json"
[data]
source = "photos"
input = "3x16x16"
resize = "none"
validation = 0.2
workers = 0
[loss]
ssim_metrics = true
[optimizer]
lr = 1e-3
[schedule]
warmup_steps = 4
[train]
run_dir = "run"
max_steps = 12
batch_size = 4
accumulate = 2
log_every = 3
validate_every = 6
preview_every = 6
checkpoint_every = 4
allocator = "system"
device = "cpu"
"""


@pytest.fixture
def project(tmp_path):
    """A folder with a config, two structures and a few small photographs cut from real ones."""
    from importlib.resources import files

    (tmp_path / "c.toml").write_text(CONFIG)
    (tmp_path / "e.json").write_text(json.dumps(["C2d_3_32_4_4", "VAERB_32_32", "C2d_32_4_1"]))
    (tmp_path / "d.json").write_text(json.dumps(["C2d_2_32_1", "VAERB_32_32", "UpS_4", "C2d_32_3_3_1_1"]))
    (tmp_path / "photos/inner").mkdir(parents=True)
    scenes = sorted((files("flexvae_cli") / "assets/scenery/val").iterdir(), key=lambda p: p.name)
    for index in range(10):
        box = (32 * index, 16 * index, 32 * index + 24, 16 * index + 20)
        photo = Image.open(scenes[index]).crop(box)
        photo.save(tmp_path / "photos" / ("inner" if index % 2 else "") / f"{index}.png")
    return tmp_path


def plan_of(project, *overrides):
    return make_plan(load_config(project / "c.toml", overrides))


def run(project, *overrides, resume=False, until=None) -> list[Event]:
    """Train; `until` closes the generator behind that event, as an abrupt end would."""
    found = []
    plan = plan_of(project, *overrides)
    with RunDirectory(plan.settings.train.run_dir, resume=resume) as held:
        for event in recorded(train(plan, gather(plan), held, resume=resume), held):
            found.append(event)
            if until and until(event):
                break
    return found


def weights(project, run_dir="run"):
    checkpoint, problems = newest_checkpoint(project / run_dir)
    assert not problems
    return checkpoint.step, {**checkpoint.weights(), **checkpoint.training()}


def same(a, b) -> bool:
    return a[0] == b[0] and a[1].keys() == b[1].keys() and all(torch.equal(a[1][k], b[1][k]) for k in a[1])


def test_a_run_writes_what_it_promises(project):
    events = run(project)
    started, finished = events[0], events[-1]
    assert isinstance(started, e.Started)
    assert started.training_images + started.validation_images == 10
    assert started.validation_images > 0
    assert finished == e.Finished(12, finished.seconds, 0)
    folder = project / "run"
    assert sorted(p.name for p in (folder / "ckpt").iterdir()) == ["step-00000008", "step-00000012"]
    assert sorted(p.name for p in (folder / "previews").iterdir()) == ["step-00000006.png", "step-00000012.png"]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [(m["step"], m["kind"]) for m in lines] == [
        (3, "train"), (6, "train"), (6, "validation"), (9, "train"), (12, "train"), (12, "validation")
    ]  # fmt: skip
    terms = lines[0]["reconstruction"] + 1e-6 * lines[0]["kld"] + 0.5 * lines[0]["ssim"]
    assert lines[0]["loss"] == pytest.approx(terms, rel=1e-4)
    assert lines[0]["lr"] == pytest.approx(1e-3 * 3 / 4)
    assert 0 < lines[2]["psnr"] < 60
    model = json.loads((folder / "ckpt/step-00000012/model.json").read_text())
    assert model["input"] == [3, 16, 16]
    assert len(model["latents"]["mean"]) == len(model["latents"]["std"]) == 2
    assert all(std > 0 for std in model["latents"]["std"])


def test_loss_falls(project):
    events = run(project, "train.max_steps=60", "train.log_every=10", "train.preview_every=0", "schedule.name=constant")
    logged = [x.values["reconstruction"] for x in events if isinstance(x, e.Logged)]
    assert logged[-1] < 0.5 * logged[0]


@pytest.mark.parametrize("overrides", [(), ("train.accumulate=1",), ("schedule.name=step", "schedule.step_size=3")])
def test_stopping_anywhere_and_resuming_changes_nothing(project, overrides):
    run(project, *overrides, "train.run_dir=" + str(project / "whole"))
    for stop in (5, 8, 9):
        shutil.rmtree(project / "run", ignore_errors=True)
        run(project, *overrides, until=lambda x: isinstance(x, e.Advanced) and x.step == stop)  # noqa: B023
        events = run(project, *overrides, resume=True)
        assert events[0].resumed
        assert events[0].step == stop - stop % 4 - (4 if stop == 8 else 0)
        assert same(weights(project), weights(project, "whole")), stop
    lines = (project / "run/metrics.jsonl").read_text().splitlines()
    assert [json.loads(x)["step"] for x in lines] == [3, 6, 6, 9, 12, 12]


def test_the_number_of_workers_changes_nothing(project):
    run(project, "train.run_dir=" + str(project / "whole"))
    run(project, "data.workers=2", until=lambda x: isinstance(x, e.Saved) and x.step == 4)
    run(project, "data.workers=0", resume=True)
    assert same(weights(project), weights(project, "whole"))


def test_resume_without_a_checkpoint_starts_and_says_so(project):
    events = run(project, resume=True)
    assert not events[0].resumed
    assert events[-1].step == 12
    again = run(project, resume=True)
    assert [type(x) for x in again] == [e.Started, e.Finished]


def test_a_finished_run_goes_on_when_it_gets_more_steps(project):
    run(project)
    assert run(project, "train.max_steps=14", "train.checkpoint_every=1", resume=True)[-1].step == 14


def test_a_resumed_run_keeps_its_settings(project):
    run(project, "train.max_steps=4")
    (project / "d.json").write_text(json.dumps(["C2d_2_64_1", "VAERB_64_32", "UpS_4", "C2d_32_3_3_1_1"]))
    with pytest.raises(UsageError) as caught:
        run(project, "train.batch_size=5", "optimizer.lr=1", "data.workers=1", "train.max_steps=9", resume=True)
    said = [p.what for p in caught.value.problems]
    assert said == [
        "optimizer.lr is 1.0, the run was started with 0.001",
        "train.batch_size is 5, the run was started with 4",
        "the structure of the decoder is not the one that the run was started with",
        "a resumed run keeps its settings",
    ]


def test_other_images_are_noticed_at_resume(project):
    run(project, "train.max_steps=4")
    Image.new("RGB", (20, 20)).save(project / "photos/new.png")
    notices = [x.text for x in run(project, resume=True) if isinstance(x, e.Noticed)]
    assert any("the training images are not the ones" in text for text in notices)


def test_a_damaged_checkpoint_is_passed_over(project):
    run(project, "train.run_dir=" + str(project / "whole"))
    run(project, until=lambda x: isinstance(x, e.Advanced) and x.step == 9)
    path = project / "run/ckpt/step-00000008/training.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    events = run(project, resume=True)
    assert events[0].step == 4
    assert any(isinstance(x, e.Noticed) and "damaged" in x.text for x in events)
    assert same(weights(project), weights(project, "whole"))


def test_starting_from_trained_weights(project):
    run(project, "train.max_steps=4")
    _, trained = weights(project)
    run(project, f"model.init={project / 'run'}", "train.max_steps=4", "train.run_dir=" + str(project / "next"),
        until=lambda x: isinstance(x, e.Saved))  # fmt: skip
    started_from = weights(project, "next")
    assert started_from[0] == 0
    assert all(torch.equal(value, trained[name]) for name, value in started_from[1].items())
    with pytest.raises(ModelError, match="no such file"):
        run(project, f"model.init={project / 'none'}", "train.run_dir=" + str(project / "third"))


def test_bad_files_are_reported_and_skipped(project):
    (project / "photos/broken.png").write_bytes((project / "photos/0.png").read_bytes()[:-200])
    (project / "photos/page.jpg").write_text("<html>not found</html>")
    Image.new("RGB", (8, 40)).save(project / "photos/tiny.png")
    events = run(project, "train.max_steps=12", "data.validation=0")
    bad = {x.name.rpartition("/")[2] for x in events if isinstance(x, e.BadFileMet)}
    assert bad == {"broken.png", "page.jpg", "tiny.png"}
    lines = [json.loads(x) for x in (project / "run/bad_files.jsonl").read_text().splitlines()]
    assert len(lines) == 3
    assert events[-1].step == 12


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (lambda p: shutil.rmtree(p / "photos"), "data.source: no such folder"),
        (lambda p: [shutil.rmtree(p / "photos"), (p / "photos").mkdir()], "data.source: nothing to read in"),
        (
            lambda p: [f.write_bytes(b"") for f in (p / "photos").rglob("*.png")],
            "data.source: none of the 10 images in",
        ),
    ],
)
def test_data_that_cannot_be_used(project, spoil, what):
    spoil(project)
    with pytest.raises(DataError) as caught:
        run(project)
    assert what in str(caught.value)


def test_numbers_that_are_not_finite_end_the_run_and_are_never_saved(project):
    with pytest.raises(DivergedError, match="training diverged"):
        run(project, "optimizer.lr=1e30", "optimizer.clip_norm=0", "train.log_every=100", "schedule.warmup_steps=0",
            "train.max_steps=100", "train.validate_every=100")  # fmt: skip
    _, tensors = weights(project)
    assert all(torch.isfinite(value).all() for value in tensors.values())


def test_epochs_count_passes_over_the_training_images(project):
    events = run(project, "train.max_steps=1", "data.validation=0.2")
    count = events[0].training_images
    text = (project / "c.toml").read_text().replace("max_steps = 12", "epochs = 3")
    (project / "c.toml").write_text(text)
    events = run(project, "train.run_dir=" + str(project / "epochs"))
    assert events[-1].step == 3 * -(-count // 4)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_stops(project, number):
    def send(event: Event) -> bool:
        if isinstance(event, e.Advanced) and event.step == 5:
            os.kill(os.getpid(), number)
        return False

    events = run(project, until=send)
    assert events[-1].signal == number
    assert weights(project)[0] == events[-1].step == 5
    run(project, "train.run_dir=" + str(project / "whole"))
    run(project, resume=True)
    assert same(weights(project), weights(project, "whole"))


def test_what_a_checkpoint_says_of_its_latents_is_a_function_of_its_weights(project):
    """`model.json` too is the same whether the run was interrupted or not."""
    every = ("train.checkpoint_every=1", "train.keep_last=20")
    run(project, *every, "train.run_dir=" + str(project / "whole"))
    run(project, *every, until=lambda x: isinstance(x, e.Saved) and x.step == 5)
    run(project, *every, resume=True)
    for step in (0, 5, 6, 9, 12):
        ours, theirs = (
            json.loads((project / name / f"ckpt/step-{step:08d}/model.json").read_text()) for name in ("run", "whole")
        )
        assert ours == theirs
        assert ours["latents"]["std"][0] > 0


def held_out(project) -> list[str]:
    from flexvae_cli.engine.starting import gather

    return [item.name for item in gather(plan_of(project)).source.validation.items]


def test_a_damaged_validation_image_is_reported_and_left_out(project):
    for index in range(10, 30):
        shutil.copy(project / f"photos/{index % 10 // 2 * 2}.png", project / f"photos/{index}.png")
    names = held_out(project)
    path = project / "photos" / names[-1]
    path.write_bytes(path.read_bytes()[:-300])
    events = run(project, "train.preview_every=3")
    assert [x.name for x in events if isinstance(x, e.BadFileMet)] == [names[-1]]
    assert [x for x in events if isinstance(x, e.Validated)]
    assert len((project / "run/bad_files.jsonl").read_text().splitlines()) == 1


def test_a_resumed_run_does_not_report_a_bad_file_again(project):
    (project / "photos/page.jpg").write_text("<html>not found</html>")
    run(project, until=lambda x: isinstance(x, e.Saved) and x.step == 4)
    run(project, resume=True)
    assert len((project / "run/bad_files.jsonl").read_text().splitlines()) == 1


def test_validation_images_that_are_all_damaged_are_refused(project):
    for name in held_out(project):
        path = project / "photos" / name
        path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(DataError, match="validation images can be read"):
        run(project)


def test_a_resume_that_changes_the_schedule_says_so(project):
    run(project)
    notices = [x.text for x in run(project, "train.max_steps=14", resume=True) if isinstance(x, e.Noticed)]
    assert any("the schedule follows the number of steps" in text for text in notices)
    with pytest.raises(UsageError, match="the run is at step 14 already, beyond the 3"):
        run(project, "train.max_steps=3", resume=True)


def test_a_setting_that_a_later_release_adds_does_not_refuse_an_old_run(project):
    from flexvae_cli.engine.resume import require_same_run

    run(project, "train.max_steps=4")
    checkpoint = newest_checkpoint(project / "run")[0]
    del checkpoint.state["settings"]["optimizer"]["eps"]
    require_same_run(plan_of(project), checkpoint)
    checkpoint.state["settings"]["optimizer"]["epsilon"] = 1
    with pytest.raises(ModelError, match="another FlexVAE"):
        require_same_run(plan_of(project), checkpoint)
