"""Aspect-ratio buckets: shapes that the net takes, steps of one shape, and the same training whatever interrupts it."""

from __future__ import annotations

import json
import shutil
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from flexvae_cli.buckets import LEAST, SPACING
from flexvae_cli.config import Config
from flexvae_cli.config.settings import Settings
from flexvae_cli.engine import events as e
from flexvae_cli.engine.checkpoint import newest_checkpoint
from flexvae_cli.engine.data.buckets import bucket_of
from flexvae_cli.engine.data.dataset import Sample, TrainingImages
from flexvae_cli.engine.data.loader import training_batches
from flexvae_cli.engine.data.preparation import Preparation
from flexvae_cli.engine.data.sampler import MicroBatches
from flexvae_cli.engine.data.sources import Item
from flexvae_cli.engine.distributed import World
from flexvae_cli.engine.loop import train
from flexvae_cli.engine.memory.phases import hardest
from flexvae_cli.engine.nonfinite import names_of
from flexvae_cli.engine.rundir import RunDirectory
from flexvae_cli.engine.starting import gather, sampler_of
from flexvae_cli.errors import DataError, UsageError
from flexvae_cli.plan import Plan, make_plan

SIZES = [(32, 32), (32, 32), (40, 30), (64, 30), (30, 66), (90, 30), (28, 50), (33, 30)]  # height, width


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures of many shapes: each of one colour, so that a sample tells which it is of."""
    (tmp_path / "photos").mkdir()
    for number, (height, width) in enumerate(SIZES):
        Image.new("RGB", (width, height), (20 * number, 0, 0)).save(tmp_path / f"photos/{number}.png")
    return tmp_path


def plan_of(folder: Path, encoder: list[str] | None = None, decoder: list[str] | None = None, **tables: Any) -> Plan:
    (folder / "e.json").write_text(json.dumps(encoder or ["C2d_3_8_4_4", "SiLU", "C2d_8_4_1"]))
    (folder / "d.json").write_text(json.dumps(decoder or ["C2d_2_8_1", "SiLU", "UpS_4", "C2d_8_3_3_1_1"]))
    base: dict[str, Any] = {
        "model": {"encoder": str(folder / "e.json"), "decoder": str(folder / "d.json")},
        "data": {"source": str(folder / "photos"), "input": "3x24x24", "max_aspect_ratio": 2.0, "validation": 0},
        "optimizer": {"lr": 3e-3},
        "train": {
            "run_dir": str(folder / "run"),
            "max_steps": 12,
            "batch_size": 3,
            "accumulate": 2,
            "preview_every": 0,
            "checkpoint_every": 5,
            "device": "cpu",
            "allocator": "system",
        },
    }
    base["data"]["workers"] = 0
    document = {**base, **{k: {**base.get(k, {}), **v} if isinstance(v, dict) else v for k, v in tables.items()}}
    return make_plan(Config(Settings.model_validate(document), folder / "c.toml", document))


# ------------------------------------------------------------------------------------------------------------ shapes


@pytest.mark.parametrize(("size", "most"), [("24x24", 2.0), ("64x64", 3.0), ("32x48", 1.3), ("256x256", 2.0)])
def test_shapes_are_such_as_the_net_takes_of_no_more_pixels(folder: Path, size: str, most: float) -> None:
    plan = plan_of(folder, data={"input": f"3x{size}", "max_aspect_ratio": most})
    shapes = plan.phases[0].shapes
    _, height, width = plan.settings.data.input
    assert shapes[0] == plan.settings.data.input
    assert len(set(shapes)) == len(shapes) > 2
    ratios = sorted(w / h for _, h, w in shapes)
    for _, h, w in shapes:
        assert plan.net.fitting((h, w)) == (h, w)
        assert LEAST * height * width <= h * w <= height * width
        assert max(h, w) <= most * min(h, w) or (h, w) == (height, width)
    if size == "256x256":  # where sizes are fine enough neighbours are as near as that, and reach nearly to the ends
        assert max(b / a for a, b in pairwise(ratios)) < 1.05 * SPACING
        assert ratios[-1] > 0.9 * most
        assert ratios[0] < 1 / most / 0.9


def test_a_phase_has_buckets_of_its_own_of_the_same_ratios(folder: Path) -> None:
    plan = plan_of(folder, phase=[{"start": 3, "loss": {"alpha": 2.0}}, {"start": 6, "input": "3x48x48"}])
    first, second, third = (phase.shapes for phase in plan.phases)
    assert first == second
    assert len(third) == len(first)
    assert third[0] == (3, 48, 48)
    for (_, h, w), (_, height, width) in zip(first, third, strict=True):
        assert height / width == pytest.approx(h / w, rel=0.2)
        assert height * width > 2.5 * h * w


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"data": {"resize": "none"}}, "data.max_aspect_ratio: scales images to the shapes of buckets"),
        ({"data": {"input": "3x8x8", "max_aspect_ratio": 1.5}}, "no other shape has at most 64 pixels and that ratio"),
        ({"encoder": ["C2d_3_8_24", "C2d_8_4_1"], "decoder": ["C2d_2_8_1", "UpS_24", "C2d_8_3_3_1_1"]}, "one size"),
        ({"loss": {"ssim_metrics": True}, "data": {"input": "3x16x16", "max_aspect_ratio": 4}}, "the input is 3x8x32"),
        ({"data": {"reader": "arrays"}}, "data.max_aspect_ratio has no meaning for what is no image"),
        (
            {
                "encoder": ["C2d_6_8_4_4", "SiLU", "C2d_8_4_1"],
                "decoder": ["C2d_2_8_1", "UpS_4", "C2d_8_6_3_1_1"],
                "data": {"input": "6x24x24"},
            },
            "is for images of 1 to 4 channels",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_read(folder: Path, change: dict[str, Any], what: str) -> None:
    with pytest.raises(UsageError) as caught:
        plan_of(folder, **change)
    assert what in str(caught.value)


def test_arrays_that_are_found_where_images_were_meant_are_refused(folder: Path) -> None:
    shutil.rmtree(folder / "photos")
    (folder / "photos").mkdir()
    np.save(folder / "photos/a.npy", np.zeros((3, 32, 32), np.float32))
    with pytest.raises(UsageError, match=r"^data\.max_aspect_ratio: has no meaning for what are no images"):
        gather(plan_of(folder))


# ----------------------------------------------------------------------------------------------------------- sampler

BUCKETS = st.lists(st.integers(0, 4), min_size=1, max_size=50).map(tuple)


def micro_batches(buckets: tuple[int, ...], batch: int, parts: int, start: int, stop: int, **more: int) -> MicroBatches:
    return MicroBatches(len(buckets), batch, parts, 0, start, stop, buckets=buckets, **more)


@given(BUCKETS, st.integers(1, 9), st.integers(1, 4), st.integers(0, 2))
def test_an_epoch_sees_every_sample_once_and_a_step_one_bucket(
    buckets: tuple[int, ...], batch: int, parts: int, epoch: int
) -> None:
    length = micro_batches(buckets, batch, parts, 0, 1).steps_per_epoch
    sampler = micro_batches(buckets, batch, parts, epoch * length, (epoch + 1) * length)
    micro, seen = iter(sampler), list[tuple[int, int]]()
    for step in range(epoch * length, (epoch + 1) * length):
        pieces = [next(micro) for _ in sampler.step_sizes(step)]
        assert [len(piece) for piece in pieces] == sampler.step_sizes(step)
        assert len({buckets[index] for piece in pieces for _, index in piece}) == 1
        assert sampler.step_samples(step) == sum(map(len, pieces)) <= batch
        seen += [at for piece in pieces for at in piece]
    assert next(micro, None) is None
    assert sorted(seen) == [(epoch, index) for index in range(len(buckets))]
    assert length == sum(-(-buckets.count(bucket) // batch) for bucket in set(buckets))


@given(BUCKETS, st.integers(1, 9), st.integers(1, 4), st.integers(1, 3), st.integers(0, 20))
def test_resuming_and_sharing_change_nothing(
    buckets: tuple[int, ...], batch: int, parts: int, world: int, start: int
) -> None:
    whole = micro_batches(buckets, batch, parts, 0, 24)
    skipped = sum(len(whole.step_sizes(step)) for step in range(start))
    assert list(micro_batches(buckets, batch, parts, start, 24)) == list(islice(whole, skipped, None))
    alone = list(micro_batches(buckets, batch, parts * world, start, start + 1))
    ranks = [list(micro_batches(buckets, batch, parts, start, start + 1, rank=r, world=world)) for r in range(world)]
    assert [ranks[k % world][k // world] for k in range(len(alone))] == alone


def test_buckets_take_turns_and_one_bucket_is_none() -> None:
    buckets = (0,) * 20 + (1,) * 20
    sampler = micro_batches(buckets, 4, 1, 0, 20)
    turns = [buckets[batch[0][1]] for batch in sampler]
    assert turns[:10] != sorted(turns[:10])
    assert turns[:10] != turns[10:]
    plain = MicroBatches(20, 4, 2, 0, 0, 12)
    assert list(sampler) == list(micro_batches(buckets, 4, 1, 0, 20))
    assert sorted(map(len, micro_batches((0,) * 20, 4, 2, 0, 12))) == sorted(map(len, plain))


# ---------------------------------------------------------------------------------------------------------- data set


def test_images_go_to_the_nearest_shape() -> None:
    shapes = [(3, 24, 24), (3, 16, 32), (3, 32, 16)]
    sizes = [(100, 100), (100, 130), (100, 150), (100, 900), (150, 100), (130, 100), (900, 100)]
    assert [bucket_of(size, shapes) for size in sizes] == [0, 0, 1, 1, 2, 0, 2]


def test_samples_have_the_shape_of_their_bucket_and_little_is_cut_off(folder: Path) -> None:
    plan = plan_of(folder, data={"crop": "center", "flip": False})
    source = gather(plan).source
    assert source.bad == ()
    shapes = plan.phases[0].shapes
    for index, item in enumerate(source.training.items):
        sample = source.training[0, index]
        assert isinstance(sample, Sample)
        number = int(item.name.removesuffix(".png"))
        assert tuple(sample.x.shape) == shapes[bucket_of(SIZES[number], shapes)]
        assert round((float(sample.x[0].mean()) + 1) * 127.5) == 20 * number
    assert source.training[0, 0].x.shape == (3, 24, 24)  # type: ignore[union-attr]
    assert len(set(source.training.buckets)) > 3


def test_an_image_need_be_as_large_as_its_own_shape_alone(folder: Path) -> None:
    Image.new("RGB", (34, 17)).save(folder / "photos/low.png")  # lower than the input, and large enough for 16x32
    Image.new("RGB", (20, 20)).save(folder / "photos/small.png")
    source = gather(plan_of(folder)).source
    assert "low.png" in [item.name for item in source.training.items]
    assert [(fault.name, "wanted are 24x24 or more" in fault.reason) for fault in source.bad] == [("small.png", True)]


def test_an_image_that_is_held_out_need_be_as_large_as_the_input(folder: Path) -> None:
    for number in range(20):
        Image.new("RGB", (34, 17)).save(folder / f"photos/low{number}.png")
    whole, source = gather(plan_of(folder)).source, gather(plan_of(folder, data={"validation": 0.5})).source
    assert source.validation is not None
    held_out = {item.name for item in source.validation.items}
    bad = {fault.name: fault.reason for fault in source.bad}
    assert held_out
    assert bad
    assert all(name.startswith("low") and "wanted are 24x24 or more" in reason for name, reason in bad.items())
    assert not any(name.startswith("low") for name in held_out)
    training = {item.name for item in source.training.items}
    assert any(name.startswith("low") for name in training)
    assert {item.name for item in whole.training.items} == training | held_out | set(bad)
    for path in (folder / "photos").glob("?.png"):
        path.unlink()
    with pytest.raises(DataError, match=r"data\.validation: none of the \d+ images in .* can be used"):
        gather(plan_of(folder, data={"validation": 0.5}))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_file_is_replaced_by_one_of_the_shape_of_its_step(folder: Path, workers: int) -> None:
    whole = (folder / "photos/0.png").read_bytes()
    shapes = [(3, 24, 24), (3, 16, 32)]
    items = [Item(f"{n}.png", folder / f"photos/{n}.png") for n in range(3)] + [Item("bad.png", folder / "bad.png")]
    (folder / "bad.png").write_bytes(whole[:-20])
    images = TrainingImages(items, Preparation((3, 24, 24)), seed=0, shapes=shapes, buckets=[0, 0, 0, 1], cache=10**6)
    sampler = MicroBatches(4, 4, 1, 0, 0, 8, buckets=(0, 0, 0, 1))
    batches = list(training_batches(images, sampler, workers=workers))
    assert sorted(tuple(batch.x.shape) for batch in batches) == [(1, 3, 16, 32)] * 4 + [(3, 3, 24, 24)] * 4
    for batch in batches:
        assert [fault.name for fault in batch.bad] == (["bad.png"] if len(batch.x) == 1 else [])


# ---------------------------------------------------------------------------------------------------------- training


def run(plan: Plan, *, resume: bool = False, until: int | None = None) -> list[e.Event]:
    found = []
    with RunDirectory(plan.settings.train.run_dir, resume=resume) as held:
        for event in train(plan, gather(plan), held, resume=resume):
            found.append(event)
            if isinstance(event, e.Saved) and event.step == until:
                break
    return found


def state(plan: Plan) -> dict[str, torch.Tensor]:
    checkpoint, _ = newest_checkpoint(plan.settings.train.run_dir)
    assert checkpoint is not None
    assert checkpoint.step == 12
    return {**checkpoint.weights(), **checkpoint.training()}


def test_training_resumes_bit_for_bit_with_workers_or_without(folder: Path) -> None:
    tables: dict[str, Any] = {"phase": [{"start": 7, "input": "3x32x32"}], "ema": {"decay": 0.9}}
    layout = {"layout": "channels-last"}
    whole = plan_of(folder, **tables, train={"run_dir": str(folder / "whole"), **layout})
    parts = plan_of(folder, **tables, train=layout, data={"workers": 2})
    run(whole)
    run(parts, until=5)
    events = run(parts, resume=True)
    assert not [event for event in events if isinstance(event, e.Noticed)]
    expected, found = state(whole), state(parts)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[key], found[key]) for key in expected)


def test_a_change_of_shapes_is_told_on_resuming(folder: Path) -> None:
    plan = plan_of(folder)
    run(plan, until=5)
    Image.new("RGB", (64, 32), (0, 0, 0)).save(folder / "photos/0.png")
    notes = [event.text for event in run(plan, resume=True) if isinstance(event, e.Noticed)]
    assert any("the training images are not the ones" in note for note in notes)
    with pytest.raises(UsageError, match=r"data\.max_aspect_ratio is 1\.5, the run was started with 2\.0"):
        run(plan_of(folder, data={"max_aspect_ratio": 1.5}), resume=True)


def test_the_report_of_a_skipped_step_names_the_images_of_its_bucket(folder: Path) -> None:
    plan = plan_of(folder)
    source = gather(plan).source
    sampler = sampler_of(plan, source.training, 0, World())
    buckets = dict(zip([item.name for item in source.training.items], source.training.buckets, strict=True))
    for step in range(8):
        names = [name for part in names_of(step, sampler, source) for name in part]
        assert len({buckets[name] for name in names}) == 1


def test_memory_is_measured_at_the_largest_bucket(folder: Path) -> None:
    hard = hardest(plan_of(folder))
    shapes = plan_of(folder).phases[0].shapes
    assert hard.shape in shapes
    assert hard.shape[1] * hard.shape[2] == max(h * w for _, h, w in shapes)
    assert f"the largest of {len(shapes)} buckets" in hard.note


def test_the_largest_input_is_not_looked_for(flexvae: Any, folder: Path) -> None:
    plan_of(folder)
    (folder / "c.toml").write_text(
        '[model]\nencoder = "e.json"\ndecoder = "d.json"\n[data]\nsource = "photos"\ninput = "3x24x24"\n'
        'max_aspect_ratio = 2.0\n[train]\nrun_dir = "run"\nmax_steps = 2\n'
    )
    done = flexvae("mem", "--config", folder / "c.toml", "--gpu", "t4", "--max-resolution")
    assert done.exit_code == 2
    assert "data.max_aspect_ratio" in done.stderr
