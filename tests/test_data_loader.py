from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from flexvae_cli import plugins
from flexvae_cli.engine.data.choosing import found_in, made
from flexvae_cli.engine.data.dataset import (
    EvaluationImages,
    MicroBatch,
    Sample,
    TrainingImages,
)
from flexvae_cli.engine.data.files import FilePreparation
from flexvae_cli.engine.data.loader import evaluation_batches, training_batches, whole_images
from flexvae_cli.engine.data.opening import BadFile
from flexvae_cli.engine.data.preparation import Preparation
from flexvae_cli.engine.data.sampler import MicroBatches
from flexvae_cli.engine.data.sources import Item, list_images
from flexvae_cli.engine.data.whole import WholeFiles, WholeImages
from flexvae_cli.errors import DataError

SCENERY = list_images("builtin:scenery/val")
PREPARATION = Preparation((3, 16, 16))


@pytest.fixture
def items(tmp_path: Path) -> list[Item]:
    """Ten photographs and one that is broken."""
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(SCENERY[0].path.read_bytes()[:5000])
    return [*SCENERY, Item("broken.jpg", broken)]


def drawn(items: list[Item], workers: int, start: int = 0) -> list[MicroBatch]:
    sampler = MicroBatches(len(items), 4, 2, 0, start_step=start, max_steps=8)
    return list(training_batches(TrainingImages(items, PREPARATION, seed=0), sampler, workers=workers))


def same(first: list[MicroBatch], second: list[MicroBatch]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a.x, b.x) and torch.equal(a.places, b.places) and a.bad == b.bad
        for a, b in zip(first, second, strict=True)
    )


def test_batches_do_not_depend_on_the_number_of_workers(items: list[Item]) -> None:
    alone = drawn(items, 0)
    assert [len(b.x) for b in alone] == [2, 2, 2, 2, 2, 1] * 2 + [2, 2] * 2
    assert sum(len(b.bad) for b in alone) >= 2
    assert same(drawn(items, 3), alone)
    assert same(drawn(items, 0, start=4), alone[8:])


def test_loading_leaves_the_global_generator_alone(items: list[Item]) -> None:
    before = torch.get_rng_state()
    drawn(items, 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_validation_again_and_again(items: list[Item]) -> None:
    images = EvaluationImages(items, PREPARATION)
    first = list(evaluation_batches(images, 4))
    assert [len(b.x) for b in first] == [4, 4, 2]
    assert torch.cat([b.places for b in first]).tolist() == list(range(10))
    assert [f.name for b in first for f in b.bad] == ["broken.jpg"]
    assert same(list(evaluation_batches(images, 4)), first)
    assert [len(b.x) for b in evaluation_batches(images, 1)] == [1] * 10 + [0]
    assert [len(b.x) for b in evaluation_batches(images, 99)] == [10]


@pytest.mark.parametrize("workers", [0, 1])
def test_whole_images_in_order(items: list[Item], workers: int) -> None:
    pairs = list(whole_images(WholeImages(items, 3), workers=workers))
    assert [item for (item, _), _ in pairs] == items
    assert all(isinstance(p, np.ndarray) and p.shape == (256, 512, 3) for _, p in pairs[:-1])
    assert isinstance(pairs[-1][1], BadFile)
    assert pairs[-1][1].reason == "is truncated"


@pytest.mark.parametrize("workers", [0, 1])
def test_nothing_readable_is_one_clear_error(tmp_path: Path, workers: int) -> None:
    empty = tmp_path / "empty.png"
    empty.touch()
    with pytest.raises(DataError) as caught:
        drawn([Item("empty.png", empty)], workers)
    assert str(caught.value).endswith("the last one, empty.png, is empty")


class Treacherous(TrainingImages):
    """Its worker dies, or its code fails, at the third batch."""

    how = "exit"

    def __getitem__(self, at: tuple[int, int]) -> Sample | DataError:
        if at[1] == 9:
            if self.how == "exit":
                os._exit(3)
            raise RuntimeError("a defect of ours")
        return super().__getitem__(at)


def treacherous(how: str) -> Iterator[MicroBatch]:
    dataset = Treacherous(SCENERY, PREPARATION, seed=0)
    dataset.how = how
    return training_batches(dataset, MicroBatches(10, 1, 1, 0, 0, 50), workers=1)


def test_a_dead_worker_is_named() -> None:
    said = r"a data worker died \(process \d+, exit code 3\) while it read \w+.jpg\n.*try data.workers = 0"
    with pytest.raises(DataError, match=said):
        list(treacherous("exit"))


def test_our_own_defects_are_not_put_down_to_the_workers() -> None:
    with pytest.raises(RuntimeError, match="a defect of ours"):
        list(treacherous("raise"))


READER = """
import signal, time
from flexvae_cli.engine.data.dataset import TrainingImages
from flexvae_cli.engine.data.loader import training_batches
from flexvae_cli.engine.data.preparation import Preparation
from flexvae_cli.engine.data.sampler import MicroBatches
from flexvae_cli.engine.data.sources import list_images

def note(*_):
    global told
    told = True

if __name__ == "__main__":
    told, after = False, 0
    signal.signal(signal.SIGTERM, note)
    items = list_images("builtin:scenery/val")
    dataset = TrainingImages(items, Preparation((3, 16, 16)), seed=0)
    stream = training_batches(dataset, MicroBatches(10, 2, 1, 0, 0, 10**9), workers=2)
    for n, batch in enumerate(stream):
        if n == 3:
            print("ready", flush=True)
        time.sleep(0.01)
        after += told
        if after == 800:  # more seconds than it takes a worker to see that the fork server is gone
            print("finished", flush=True)
            break
"""


def group_members(group: int) -> list[int]:
    """The living processes of a process group."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            found.append(int(status.parent.name))
    return found


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="reads /proc")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_no_process_is_left_behind(tmp_path: Path, number: signal.Signals) -> None:
    """SIGKILL reaches the reader alone, the others the whole group; reader and workers outlive SIGTERM."""
    script = tmp_path / "reader.py"
    script.write_text(READER)
    reader = subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert reader.stdout is not None
    assert reader.stderr is not None
    try:
        assert reader.stdout.readline() == "ready\n"
        assert len(group_members(reader.pid)) >= 4  # the reader, the fork server, two workers
        if number == signal.SIGKILL:
            reader.kill()
        else:
            os.killpg(reader.pid, number)
        deadline = time.monotonic() + 30
        while group_members(reader.pid) and time.monotonic() < deadline:
            reader.poll()
            time.sleep(0.1)
        assert group_members(reader.pid) == []
        assert reader.stderr.read().count("Traceback") == (number == signal.SIGINT)
        assert reader.stdout.read() == ("finished\n" if number == signal.SIGTERM else "")
    finally:
        for pid in group_members(reader.pid):
            os.kill(pid, signal.SIGKILL)
        reader.communicate()


REAL = Path(__file__).parent / "data" / "real"


@pytest.mark.parametrize(
    ("reader", "folder", "shape", "values"),
    [
        ("arrays", "ecg", (1, 256), {"low": 0, "high": 2047}),
        ("audio", "audio", (1, 512), {}),
        ("volumes", "mri", (1, 8, 8, 8), {}),
        ("images", "multichannel", (4, 16, 16), {}),
    ],
)
def test_samples_of_every_reader_do_not_depend_on_the_number_of_workers(
    reader: str, folder: str, shape: tuple[int, ...], values: dict[str, int]
) -> None:
    """Windows and crops of files that are mapped, decoded or unpacked, those of training and files whole."""
    pytest.importorskip({"audio": "soundfile", "volumes": "nibabel"}.get(reader, "numpy"))
    chosen = made(plugins.installed().registry, reader, values)
    items = found_in(chosen, str(REAL / folder), "data.source")
    preparation = FilePreparation(shape, chosen.reader, 64_000_000)

    def training(workers: int) -> list[MicroBatch]:
        sampler = MicroBatches(len(items), 2, 1, 0, 0, 5)
        images = TrainingImages(items, preparation, seed=3, flip=False, cache=10**7)
        return list(training_batches(images, sampler, workers=workers))

    def whole(workers: int) -> list[tuple[object, np.ndarray]]:
        return list(whole_images(WholeFiles(items, chosen.reader, shape, 64_000_000), workers=workers))

    alone = training(0)
    assert all(batch.x.shape[1:] == shape and not batch.bad for batch in alone)
    assert any(float(batch.x.std()) > 0 for batch in alone)
    assert same(training(2), alone)
    for (about, x), (other, y) in zip(whole(2), whole(0), strict=True):
        assert about == other
        assert np.array_equal(x, y)
