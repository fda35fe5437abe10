from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from flexvae_cli.engine.data.sources import list_images
from flexvae_cli.engine.inference import BATCH_PIXELS, read_samples, runs, slerp
from flexvae_cli.engine.latent_files import FileWriter, Latent, ShardWriter
from flexvae_cli.engine.latents import (
    discard_latents,
    encode_images,
    labels_of,
    make_manifest,
    publish_manifest,
)
from flexvae_cli.engine.manifest import MANIFEST, manifest_bytes, read_manifest, safe_name
from flexvae_cli.engine.model import load
from flexvae_cli.engine.naming import OutputFolder
from flexvae_cli.errors import ModelError


def latent(index: int, *shape: int, mirrored: bool = False) -> Latent:
    z = torch.full(shape, float(index))
    return Latent(f"{index}.png", (4 * shape[1], 4 * shape[2]), index % 2, z, -z if mirrored else None)


class Reader:
    """Reads one series as LightningDiT does: every file of a folder, counted by its labels, sliced by row."""

    def __init__(self, folder: Path) -> None:
        self.rows = []
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, "pt") as file:
                self.rows += [(path, row) for row in range(file.get_slice("labels").get_shape()[0])]

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        path, row = self.rows[index]
        with safe_open(path, "pt") as file:
            return {key: file.get_slice(key)[row : row + 1].squeeze(0) for key in file.keys()}  # noqa: SIM118


def test_a_series_reads_as_lightningdit_reads_it(tmp_path):
    writer = ShardWriter(OutputFolder(tmp_path), size=2)
    for index in range(5):
        writer.add(latent(index, 2, 3, 4, mirrored=True))
    writer.close()
    reader = Reader(tmp_path / "2x3x4")
    assert [path.name for path, _ in reader.rows] == [
        f"latents_rank00_shard{k:03d}.safetensors" for k in (0, 0, 1, 1, 2)
    ]
    for index in range(5):
        row = reader[index]
        assert row["latents"].shape == row["latents_flip"].shape == (2, 3, 4)
        assert row["latents"].unique().tolist() == [index]
        assert row["latents_flip"].unique().tolist() == [-index]
        assert row["labels"].tolist() == index % 2


def test_every_shape_has_a_series_of_its_own_and_places_are_told(tmp_path):
    writer = ShardWriter(OutputFolder(tmp_path), size=2)
    latents = [latent(index, 2, *((3, 4) if index % 3 else (4, 3))) for index in range(9)]
    places = [writer.add(each) for each in latents]
    writer.close()
    assert {Path(file.path).parent.name for file in writer.files} == {"2x3x4", "2x4x3"}
    assert sum(file.count for file in writer.files) == 9
    for each, place in zip(latents, places, strict=True):
        assert torch.equal(load_file(tmp_path / place.file)["latents"][place.index], each.z)


def test_memory_is_bounded_by_writing_early(tmp_path):
    size = latent(0, 2, 3, 4).z.nbytes
    writer = ShardWriter(OutputFolder(tmp_path), size=1000, room=4 * size)
    held = []
    for index in range(20):
        writer.add(latent(index, 2, 3, 4) if index % 4 else latent(index, 2, 4, 3))
        held.append(sum(len(series) for series in writer._pending.values()))
    writer.close()
    assert max(held) <= 4
    assert len(writer.files) > 3
    assert sum(file.count for file in writer.files) == 20


def test_a_file_of_its_own_says_what_it_is(tmp_path):
    writer = FileWriter(OutputFolder(tmp_path), {"1.png": "a/1.safetensors"}, about={"latents": "raw"})
    place = writer.add(latent(1, 2, 3, 4))
    assert place.file == "a/1.safetensors"
    with safe_open(tmp_path / place.file, "pt") as file:
        assert json.loads(file.metadata()["flexvae"]) == {"latents": "raw", "size": [12, 16]}
    assert load_file(tmp_path / place.file)["latents"].shape == (2, 3, 4)


def test_labels_are_the_top_level_folders():
    assert labels_of(["a.png", "b.png"]) == [""]
    assert labels_of(["z/a.png", "Z/b.png", "z/y/c.png", "d.png"]) == ["", "Z", "z"]


def test_latents_that_are_not_finite_are_refused(make_model, photos, tmp_path):
    run = make_model(tmp_path / "run", change=lambda weights: next(iter(weights.values())).fill_(float("nan")))
    model = load(run)
    samples = read_samples(model, list_images(str(photos / "b")), workers=0, report=print)
    writer = ShardWriter(OutputFolder(tmp_path / "out"))
    with pytest.raises(ModelError, match=r"latents of c\.png that are not finite"):
        list(encode_images(model, samples, writer, labels=[""]))


def test_a_manifest_comes_back_as_it_was_written(tiny_model, photos, tmp_path):
    model, folder = load(tiny_model), OutputFolder(tmp_path / "out")
    items = list_images(str(photos))
    labels = labels_of([item.name for item in items])
    writer = ShardWriter(folder, size=2)
    samples = read_samples(model, items, workers=0, report=print)
    images = list(encode_images(model, samples, writer, labels=labels))
    manifest = make_manifest(model, "shards", writer, images, [], labels=labels, flip=False)
    publish_manifest(folder, manifest)
    assert read_manifest(tmp_path / "out") == manifest
    lines = manifest_bytes(manifest).decode().splitlines()
    assert sum('"name"' in line for line in lines) == len(items)
    discard_latents(folder)
    assert not [p for p in (tmp_path / "out").rglob("*") if p.is_file()]


def test_discarding_touches_latents_only(tmp_path):
    folder = OutputFolder(tmp_path)
    for name in ("2x3x4/latents_rank00_shard000.safetensors", "other/latents_rank00_shard000.safetensors", "a.txt"):
        folder.write(name, b"x")
    folder.write(MANIFEST, b"damaged")
    discard_latents(folder)
    left = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file())
    assert left == ["a.txt", "other/latents_rank00_shard000.safetensors"]


@pytest.mark.parametrize("name", ["", ".", "..", "/a", "a/", "a//b", "a/./b", "a/../b", "a\0", None, 3])
def test_a_name_that_leads_elsewhere_is_none(name):
    with pytest.raises(ValueError, match="wants"):
        safe_name(name)


def test_neighbours_of_one_size_run_together():
    sizes = [(4, 4)] * 5 + [(8, 4)] + [(4, 4)] * 2
    found = list(runs(enumerate(sizes), lambda each: each[1], 3))
    assert [len(run) for run in found] == [3, 2, 1, 2]
    assert [each for run in found for each in run] == list(enumerate(sizes))


def test_large_images_run_in_smaller_batches():
    side = 1024
    fit = BATCH_PIXELS // side**2
    assert [len(run) for run in runs([(side, side)] * 10, lambda each: each, 8)] == [fit] * (10 // fit) + [10 % fit]
    assert [len(run) for run in runs([(9000, 9000)] * 2, lambda each: each, 8)] == [1, 1]


def test_slerp_turns_at_a_constant_rate():
    a, b = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 2.0])
    for t in (0.0, 0.25, 0.5, 1.0):
        angle = torch.tensor(t * torch.pi / 2)
        torch.testing.assert_close(slerp(a, b, t), 2 * torch.stack([angle.cos(), angle.sin()]))
    assert torch.equal(slerp(a, b, 0.0), a)
    assert torch.equal(slerp(a, b, 1.0), b)
    assert slerp(a, 3 * a, 0.5).tolist() == [4.0, 0.0]
    assert slerp(a, -a, 0.5).tolist() == [0.0, 0.0]


def test_the_page_on_latents_reads_them(tiny_model, flexvae, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flexvae("encode", tiny_model, photos / "b", "latents", "--workers", 0)
    flexvae("export", tiny_model, "model")
    page = (Path(__file__).parents[1] / "docs" / "latents.md").read_text()
    names: dict[str, torch.Tensor] = {}
    exec(page.partition("```python\n")[2].partition("```")[0], names)
    assert names["x"].shape == (1, 3, 37, 50)
