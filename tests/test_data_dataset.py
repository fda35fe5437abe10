from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from flexvae_cli.config.settings import DataTable
from flexvae_cli.engine.data.buckets import usable
from flexvae_cli.engine.data.dataset import (
    EvaluationImages,
    Fault,
    MicroBatch,
    Sample,
    TrainingImages,
    collate,
)
from flexvae_cli.engine.data.opening import BadFile
from flexvae_cli.engine.data.preparation import Preparation
from flexvae_cli.engine.data.sources import Item, list_images
from flexvae_cli.engine.data.whole import WholeImages
from flexvae_cli.errors import DataError

SCENERY = list_images("builtin:scenery")[:6]


def one(image: Image.Image, tmp_path: Path, name: str = "image.png") -> list[Item]:
    image.save(tmp_path / name)
    return [Item(name, tmp_path / name)]


def training(items: list[Item], shape: tuple[int, int, int] = (3, 32, 32), **options: object) -> TrainingImages:
    resize = options.pop("resize", "cover")
    return TrainingImages(items, Preparation(shape, resize), **({"seed": 0} | options))  # type: ignore[arg-type]


def sample(dataset: TrainingImages, epoch: int, index: int) -> Sample:
    found = dataset[epoch, index]
    assert isinstance(found, Sample)
    return found


def table(**keys: object) -> DataTable:
    return DataTable.model_validate({"source": "x"} | keys)


def coordinates(height: int, width: int) -> Image.Image:
    """An image whose pixels tell where they are: red is the row, green the column."""
    rows, columns = np.indices((height, width)).astype(np.uint8)
    return Image.fromarray(np.stack([rows, columns, rows * 0], axis=2))


def test_a_sample_is_a_function_of_seed_epoch_and_index() -> None:
    first, cached = training(SCENERY), training(SCENERY, cache=10**6)
    reference = {(e, i): sample(first, e, i).x for e in range(2) for i in range(6)}
    torch.manual_seed(99)
    for at in [*reversed(reference), *reference]:
        assert torch.equal(sample(cached, *at).x, reference[at])
    assert not torch.equal(reference[0, 1], reference[1, 1])
    assert not torch.equal(sample(training(SCENERY, seed=1), 0, 1).x, reference[0, 1])
    assert all(x.shape == (3, 32, 32) and x.dtype == torch.float32 and x.abs().max() <= 1 for x in reference.values())


def test_crops_reach_every_place_and_half_are_mirrored(tmp_path: Path) -> None:
    dataset = training(one(coordinates(10, 12), tmp_path), (3, 8, 8), resize="none", cache=10**6)
    seen: Counter[tuple[int, int, bool]] = Counter()
    for epoch in range(1500):
        pixels = ((sample(dataset, epoch, 0).x + 1) * 127.5).round().int()
        mirrored = bool(pixels[1, 0, 0] > pixels[1, 0, 1])
        seen[int(pixels[0, 0, 0]), int(pixels[1, 0].min()), mirrored] += 1
    assert set(seen) == {(top, left, m) for top in range(3) for left in range(5) for m in (False, True)}
    assert all(20 <= count <= 90 for count in seen.values())  # 50 on average


def test_center_crops_without_mirroring(tmp_path: Path) -> None:
    items = one(coordinates(10, 12), tmp_path)
    dataset = training(items, (3, 8, 8), resize="none", crop="center", flip=False)
    expected = sample(dataset, 0, 0).x
    assert ((expected[:2, 0, 0] + 1) * 127.5).round().tolist() == [1, 2]
    assert all(torch.equal(sample(dataset, epoch, 0).x, expected) for epoch in range(8))
    evaluated = EvaluationImages(items, Preparation((3, 8, 8), "none"))[0]
    assert isinstance(evaluated, Sample)
    assert torch.equal(evaluated.x, expected)


def test_cover_shows_the_whole_shorter_side(tmp_path: Path) -> None:
    dataset = training(one(coordinates(200, 100), tmp_path), (3, 20, 20), flip=False)
    columns = (sample(dataset, 0, 0).x[1, 0] + 1) * 127.5
    assert columns[0] < 4
    assert columns[-1] > 95


def test_sixteen_bits_arrive(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    x = sample(training(one(Image.fromarray(ramp), tmp_path), (1, 64, 64), flip=False), 0, 0).x
    assert len(set(x.flatten().tolist())) == 64 * 64
    assert torch.equal(x[0], torch.from_numpy(ramp.astype(np.float32) / 65535 * 2 - 1))


def test_the_cache_fills_up_and_is_used(tmp_path: Path) -> None:
    items = [i for n in range(3) for i in one(Image.new("RGB", (32, 32), (n, n, n)), tmp_path, f"{n}.png")]
    dataset = training(items, cache=2 * 32 * 32 * 3 + 100)
    before = [sample(dataset, 0, i).x for i in range(3)]
    for item in items:
        item.path.unlink()
    assert [isinstance(dataset._decoded(i), np.ndarray) for i in range(2)] == [True, True]
    assert all(torch.equal(sample(dataset, 0, i).x, before[i]) for i in range(2))
    assert sample(dataset, 0, 2).bad == (Fault("2.png", "cannot be opened: no such file or directory"),)


def test_a_bad_file_is_replaced_and_reported(tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(SCENERY[0].path.read_bytes()[:5000])
    items = [*SCENERY, Item("broken.jpg", broken)]
    dataset = training(items)
    places = set()
    for epoch in range(20):
        found = sample(dataset, epoch, 6)
        assert found.bad == (Fault("broken.jpg", "is truncated"),)
        assert found.place != 6
        again = sample(training(items), epoch, 6)
        assert again.place == found.place
        assert torch.equal(again.x, found.x)
        places.add(found.place)
    assert len(places) > 2
    assert sample(dataset, 0, 0).bad == ()
    batch = collate([dataset[0, 6], dataset[0, 1], dataset[1, 6]])
    assert isinstance(batch, MicroBatch)
    assert batch.x.shape == (3, 3, 32, 32)
    assert batch.bad == (Fault("broken.jpg", "is truncated"),)


def test_nothing_readable_is_an_error(tmp_path: Path) -> None:
    empty = tmp_path / "empty.png"
    empty.touch()
    found = training([Item("empty.png", empty)])[0, 0]
    assert isinstance(found, DataError)
    assert "100 images in a row cannot be read; the last one, empty.png, is empty" in str(found)
    assert collate([sample(training(SCENERY), 0, 0), found]) is found


def test_validation_leaves_bad_files_out(tmp_path: Path) -> None:
    empty = tmp_path / "empty.png"
    empty.touch()
    dataset = EvaluationImages([SCENERY[0], Item("empty.png", empty), SCENERY[1]], Preparation((3, 32, 32)))
    batch = collate([dataset[i] for i in range(3)])
    assert isinstance(batch, MicroBatch)
    assert (batch.places.tolist(), batch.bad) == ([0, 2], (Fault("empty.png", "is empty"),))
    nothing = collate([dataset[1]])
    assert isinstance(nothing, MicroBatch)
    assert len(nothing.x) == len(nothing.places) == 0


def test_whole_images_come_at_their_own_size(tmp_path: Path) -> None:
    empty = tmp_path / "empty.png"
    empty.touch()
    dataset = WholeImages([SCENERY[0], Item("empty.png", empty)], 1)
    (item, _), pixels = dataset[0]
    assert isinstance(pixels, np.ndarray)
    assert (item, pixels.shape) == (SCENERY[0], (256, 512, 1))
    (item, _), bad = dataset[1]
    assert isinstance(bad, BadFile)
    assert (item.name, bad.reason) == ("empty.png", "is empty")


def test_min_size_decides_what_is_too_small(tmp_path: Path) -> None:
    items = one(Image.new("RGB", (20, 24)), tmp_path)
    for data, least in (
        (table(input=(3, 16, 32)), (16, 32)),
        (table(input=(3, 16, 32), min_size=8), (8, 8)),
        (table(input=(3, 16, 32), min_size=64), (64, 64)),
        (table(input=(3, 16, 32), min_size=24, resize="none"), (24, 32)),
        (table(input=(3, 16, 32), resize="none"), (16, 32)),
    ):
        preparation = Preparation.of(data)
        assert preparation.least == least
        good, _ = usable(items, [data.input], [preparation])
        assert bool(good) == (least == (8, 8))
    enlarged = Preparation((3, 16, 32), min_size=8).read(items[0])
    assert enlarged.shape == (38, 32, 3)
    with pytest.raises(BadFile, match="is smaller than the crop of 16x32"):
        Preparation((3, 16, 32), "none").read(items[0])
