"""Fast input: JPEGs decoded at a fraction of their size, and decoded images kept on disk."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flexvae_cli.config.settings import DataTable
from flexvae_cli.engine.data import cache
from flexvae_cli.engine.data.cache import ImageCache
from flexvae_cli.engine.data.dataset import TrainingImages
from flexvae_cli.engine.data.images import read_image
from flexvae_cli.engine.data.preparation import Preparation
from flexvae_cli.engine.data.sources import Item, list_images
from flexvae_cli.errors import ResourceError

SCENERY = list_images("builtin:scenery/val")


@pytest.fixture
def items(tmp_path: Path) -> list[Item]:
    """Photographs that can be written to, one of them grey with 16 bits."""
    found = []
    for item in SCENERY[:3]:
        path = tmp_path / "photos" / item.name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(item.path.read_bytes())
        found.append(Item(item.name, path))
    deep = tmp_path / "photos" / "deep.png"
    Image.fromarray(np.arange(40 * 50, dtype=np.uint16).reshape(40, 50) * 30).save(deep)
    return [*found, Item("deep.png", deep)]


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(-10 * np.log10(np.mean((a.astype(np.float64) - b) ** 2) / 255**2))


@pytest.mark.parametrize("side", [32, 64])
def test_a_draft_is_near_the_full_decode(side: int) -> None:
    """Photographs that are scaled down by 2 and more: what differs is invisible, and it is switched off where asked."""
    for item in SCENERY[:4]:
        drafted, full = (
            read_image(item.path, channels=3, cover=(side, side), draft=draft).astype(int) for draft in (True, False)
        )
        assert drafted.shape == full.shape
        assert 32 < psnr(drafted, full) < 70


def test_where_nothing_is_scaled_down_by_two_a_draft_is_the_full_decode() -> None:
    path = SCENERY[0].path
    with Image.open(path) as image:
        cover = (image.height * 2 // 3, image.width * 2 // 3)
    drafted, full = (read_image(path, channels=3, cover=cover, draft=draft) for draft in (True, False))
    assert np.array_equal(drafted, full)


def test_what_is_kept_is_what_was_decoded(items, tmp_path, monkeypatch):
    plain = Preparation((3, 32, 32))
    kept = Preparation((3, 32, 32), cache=ImageCache.at(tmp_path / "cache"))
    for item in items:
        assert np.array_equal(kept.read(item), plain.read(item))
    assert len(list((tmp_path / "cache").glob("*/*.npy"))) == 3  # the one of 16 bits is not kept
    monkeypatch.setattr("flexvae_cli.engine.data.preparation.read_image", None)
    for item in items[:3]:
        again = kept.read(item)
        assert isinstance(again, np.memmap)
        assert again.shape[2] == 3
    with pytest.raises(TypeError):
        kept.read(items[3])


def test_training_samples_are_the_same_with_a_cache(items, tmp_path):
    plain, kept = (
        TrainingImages(items, Preparation((3, 32, 32), cache=each), seed=0)
        for each in (None, ImageCache.at(tmp_path / "cache"))
    )
    for epoch in range(2):
        for index in range(len(items)):
            assert (plain[epoch, index].x == kept[epoch, index].x).all()


def test_what_is_mapped_from_disk_is_not_kept_in_memory(items, tmp_path):
    """A process can have 65,530 maps on Linux, and each that is kept is one."""
    preparation = Preparation((3, 32, 32), cache=ImageCache.at(tmp_path / "cache"))
    for item in items:
        preparation.read(item)
    images = TrainingImages(items, preparation, seed=0, cache=1 << 30)
    for index in range(len(items)):
        images[0, index]
    assert list(images.kept) == [(3, 0)]  # 16 bits: decoded each time


@pytest.mark.parametrize("other", ["cache.FORMAT", "cache.PIL.__version__", "max_pixels"])
def test_another_version_or_another_limit_makes_other_entries(items, tmp_path, monkeypatch, other):
    folder = ImageCache.at(tmp_path / "cache")
    Preparation((3, 32, 32), cache=folder).read(items[0])
    pixels = {"max_pixels": 63_000_000} if other == "max_pixels" else {}
    if not pixels:
        monkeypatch.setattr(f"flexvae_cli.engine.data.{other}", "another")
    Preparation((3, 32, 32), cache=folder, **pixels).read(items[0])
    assert len(list((tmp_path / "cache").glob("*/*.npy"))) == 2


def test_another_content_and_another_preparation_are_other_entries(items, tmp_path):
    folder = ImageCache.at(tmp_path / "cache")
    kept = Preparation((3, 32, 32), cache=folder)
    first = np.array(kept.read(items[0]))
    items[0].path.write_bytes(items[1].path.read_bytes())
    assert not np.array_equal(kept.read(items[0]), first)
    assert np.array_equal(kept.read(items[0]), kept.read(items[1]))
    others = [
        Preparation((3, 48, 32), cache=folder),
        Preparation((1, 32, 32), cache=folder),
        Preparation((3, 32, 32), draft=False, cache=folder),
        Preparation((3, 32, 32), "none", cache=folder),
    ]
    for other in others:
        assert np.array_equal(other.read(items[2]), Preparation(*_without_cache(other)).read(items[2]))


def _without_cache(preparation: Preparation) -> tuple:
    how = preparation
    return how.shape, how.resize, how.min_size, how.background, how.exif, how.max_pixels, how.draft


@pytest.mark.parametrize("damage", [b"", b"junk", None])
def test_an_entry_that_is_not_whole_is_made_anew(items, tmp_path, damage):
    kept = Preparation((3, 32, 32), cache=ImageCache.at(tmp_path / "cache"))
    first = np.array(kept.read(items[0]))
    (entry,) = (tmp_path / "cache").glob("*/*.npy")
    entry.write_bytes(entry.read_bytes()[:-1] if damage is None else damage)
    assert np.array_equal(kept.read(items[0]), first)
    assert np.array_equal(np.load(entry), first)


def fill(folder: Path, items: list[Item]) -> None:
    kept = Preparation((3, 32, 32), cache=ImageCache(folder))
    while True:
        for item in items:
            kept.read(item)
        for entry in folder.glob("*/*.npy"):
            entry.unlink(missing_ok=True)


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL is for POSIX")
def test_two_processes_that_are_killed_leave_whole_entries(items, tmp_path):
    folder = ImageCache.at(tmp_path / "cache").folder
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=fill, args=(folder, items), daemon=True) for _ in range(2)]
    wanted = [np.array(Preparation((3, 32, 32)).read(item)) for item in items]
    kept = Preparation((3, 32, 32), cache=ImageCache(folder))
    for process in processes:
        process.start()
    while not list(folder.glob("*/*.npy")) and all(process.is_alive() for process in processes):
        time.sleep(0.05)
    assert all(process.is_alive() for process in processes)
    for _ in range(20):
        for item, pixels in zip(items, wanted, strict=True):
            assert np.array_equal(kept.read(item), pixels)
    for process in processes:
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    for item, pixels in zip(items, wanted, strict=True):
        assert np.array_equal(kept.read(item), pixels)
        assert np.array_equal(kept.read(item), pixels)


def test_what_killed_writers_left_goes_after_a_while(tmp_path):
    old, new = tmp_path / "aa" / ".tmp-1-x", tmp_path / "aa" / ".tmp-2-y"
    old.parent.mkdir()
    for orphan in (old, new):
        orphan.write_bytes(b"half")
    os.utime(old, (1, 1))
    ImageCache.at(tmp_path)
    assert not old.exists()
    assert new.exists()


def test_a_full_disk_costs_speed_alone(items, tmp_path, monkeypatch):
    kept = Preparation((3, 32, 32), cache=ImageCache.at(tmp_path / "cache"))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache, "write_new", full)
    assert np.array_equal(kept.read(items[0]), Preparation((3, 32, 32)).read(items[0]))
    assert not list((tmp_path / "cache").rglob("*.npy"))


def test_the_settings_are_honoured_or_refused(tmp_path):
    table = DataTable(source="builtin:scenery", input="3x32x32", draft=False, cache_dir=tmp_path / "new" / "cache")
    preparation = Preparation.of(table)
    assert not preparation.draft
    assert preparation.cache == ImageCache(tmp_path / "new" / "cache")
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError):
        Preparation.of(table.model_copy(update={"cache_dir": tmp_path / "file"}))
