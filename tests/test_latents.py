from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from flexvae_cli.engine.data.sources import Item
from flexvae_cli.engine.inference import BATCH_PIXELS, runs, slerp
from flexvae_cli.engine.latents.containers import LAYOUTS, Kept
from flexvae_cli.engine.latents.opening import open_latents
from flexvae_cli.engine.latents.plan import ROOM, Planned, labels_of, units_of
from flexvae_cli.engine.latents.settings import discard_latents
from flexvae_cli.engine.latents.values import DTYPES, Values, narrow, widen
from flexvae_cli.engine.manifest import MANIFEST, LatentFile, manifest_bytes, read_manifest, safe_name
from flexvae_cli.engine.naming import OutputFolder
from flexvae_cli.errors import Exit, ModelError


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


def test_a_series_reads_as_lightningdit_reads_it(flexvae, tiny_model, photos, tmp_path):
    for index in range(3):
        (photos / f"b/c{index}.png").write_bytes((photos / "b/c.png").read_bytes())
    done = flexvae("encode", tiny_model, photos, tmp_path / "z", "--flips", "--shard-size", 2, "--workers", 0)
    assert done.exit_code == 0, done.stderr
    reader = Reader(tmp_path / "z/2x10x13")
    names = [path.name for path, _ in reader.rows]
    assert names == [f"latents_rank00_shard{k:03d}.safetensors" for k in (0, 0, 1, 1, 2)]
    manifest = read_manifest(tmp_path / "z")
    series = [image for image in manifest.images if image.file.startswith("2x10x13/")]
    for index, image in enumerate(series):
        row = reader[index]
        assert row["latents"].shape == row["latents_flip"].shape == (2, 10, 13)
        assert torch.equal(row["latents"], load_file(tmp_path / "z" / image.file)["latents"][image.index])
        assert not torch.equal(row["latents"], row["latents_flip"])
        assert row["labels"].item() == manifest.labels.index("b")


def planned(count: int, size: tuple[int, int]) -> list[Planned]:
    return [Planned(Item(f"{size}-{k}.png", Path()), size, 0) for k in range(count)]


def test_every_shape_has_units_of_its_own():
    images = [each for pair in zip(planned(5, (8, 8)), planned(5, (8, 4)), strict=True) for each in pair]
    units = units_of(images, lambda size: (2, *size), most=2, row=4)
    assert [(unit.latent, unit.number, len(unit.images)) for unit in units] == [
        (shape, number, count) for shape in ((2, 8, 8), (2, 8, 4)) for number, count in ((0, 2), (1, 2), (2, 1))
    ]
    assert {image.item.name for unit in units for image in unit.images} == {image.item.name for image in images}
    assert len({unit.key for unit in units}) == len(units)


def test_a_unit_takes_no_more_memory_than_there_is_room_for():
    side = 1024
    (unit, *more) = units_of(planned(70, (side, side)), lambda size: (4, *size), most=1024, row=4)
    assert len(unit.images) == ROOM // (4 * 4 * side**2)
    assert sum(len(each.images) for each in [unit, *more]) == 70
    assert [len(each.images) for each in units_of(planned(2, (9000, 9000)), lambda s: (4, *s), most=9, row=8)] == [1, 1]


@pytest.mark.parametrize("name", DTYPES)
def test_numbers_come_back_from_the_type_that_they_are_stored_in(name):
    numbers = 3 * torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0)) + 10
    numbers[1] = 0.25  # a channel of one value
    stored = narrow(numbers, DTYPES[name])
    assert stored[""].dtype == DTYPES[name]
    back = widen(stored, "")
    spread = float(numbers[0].max() - numbers[0].min())
    most = {"fp32": 0.0, "fp16": 2**-11 * 20, "bf16": 2**-8 * 20, "int8": 0.51 * spread / 255}[name]
    assert (back - numbers).abs().max() <= most
    assert torch.equal(back[1], numbers[1])
    many = widen({key: torch.stack([tensor, tensor]) for key, tensor in stored.items()}, "")
    assert torch.equal(many, torch.stack([back, back]))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_a_layout_packs_it_unpacks(tmp_path, layout):
    keys = ["latents", "latents_std"]
    rows = [
        Kept(f"{n}.png", (4, 4), n, {key: torch.full((2, 3, 4), n + len(key) / 100) for key in keys}) for n in range(3)
    ]
    how = LAYOUTS[layout]
    rows = rows if how.many else rows[:1]
    path = tmp_path / f"one{how.suffix}"
    path.write_bytes(how.pack(rows, {"latents": "raw"}))
    assert how.pack(rows, {"latents": "raw"}) == path.read_bytes()
    found = how.unpack(path, keys)
    for key in keys:
        assert torch.equal(found[key], torch.stack([row.tensors[key] for row in rows]))
    if how.many:
        assert found["labels"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("layout", ["npy", "wds"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "object", "huge"])
def test_a_damaged_file_is_refused(tmp_path, layout, damage):
    how, path = LAYOUTS[layout], tmp_path / "one"
    data = how.pack([Kept("a.png", (4, 4), 0, {"latents": torch.ones(2, 3, 4)})], {})
    at = data.index(b"\x93NUMPY")
    data = {
        "cut": data[: at + 20],
        "flipped": data[:at] + b"\x00" + data[at + 1 :],
        "object": data.replace(b"'<f4'", b"'|O' "),
        "huge": data.replace(b"(1, 2, 3, 4)", b"(9, 9, 9, 9)").replace(b"(2, 3, 4)", b"(9, 3, 4)"),
    }[damage]
    path.write_bytes(data)
    values = Values("mean")
    file = LatentFile(path="one", sha256="0" * 64, bytes=len(data), count=1, shape=(2, 3, 4))
    with pytest.raises(ModelError, match=r"not a readable|lacks|holds|claims more"):
        open_latents(tmp_path, file, layout, values)


def test_members_of_a_tar_that_are_no_files_are_passed_over(tmp_path):
    path = tmp_path / "one.tar"
    data = LAYOUTS["wds"].pack([Kept("a.png", (4, 4), 0, {"latents": torch.ones(2, 3, 4)})], {})
    with tarfile.open(fileobj=(buffer := io.BytesIO(data)), mode="a") as tar:
        for name, kind in (("../../x", tarfile.REGTYPE), ("00000000.latents.npy", tarfile.SYMTYPE), ("p", b"6")):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
    path.write_bytes(buffer.getvalue())
    before = set(tmp_path.parent.rglob("*"))
    assert torch.equal(LAYOUTS["wds"].unpack(path, ["latents"])["latents"], torch.ones(1, 2, 3, 4))
    assert set(tmp_path.parent.rglob("*")) == before


@pytest.mark.parametrize("label", ["9223372036854775808", "1" + "0" * 30, "-9223372036854775809", "x"])
def test_a_label_that_is_no_number_of_64_bits_is_refused(tmp_path, label):
    path = tmp_path / "one.tar"
    with tarfile.open(path, "w") as tar:
        info = tarfile.TarInfo("00000000.cls")
        info.size = len(label)
        tar.addfile(info, io.BytesIO(label.encode()))
    with pytest.raises(ModelError, match="is not a readable tar file"):
        LAYOUTS["wds"].unpack(path, ["latents"])


def test_a_member_that_claims_more_than_the_tar_holds_is_refused(tmp_path):
    """Sparse members, and sizes beyond the end: neither takes the memory that it claims."""
    sparse = tarfile.TarInfo("00000000.latents.npy")
    sparse.pax_headers = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.map": "0,1"}
    sparse.pax_headers |= {"GNU.sparse.size": str(1 << 40), "GNU.sparse.numblocks": "1"}
    sparse.size = 1
    with tarfile.open(tmp_path / "sparse.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(sparse, io.BytesIO(b"x"))
    beyond = tarfile.TarInfo("00000000.latents.npy")
    beyond.size = 1 << 40
    (tmp_path / "beyond.tar").write_bytes(beyond.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    for name in ("sparse", "beyond"):
        with pytest.raises(ModelError, match="claims more than is there"):
            LAYOUTS["wds"].unpack(tmp_path / f"{name}.tar", ["latents"])


def test_a_file_of_its_own_says_what_it_is(tmp_path):
    row = Kept("1.png", (12, 16), 0, {"latents": torch.ones(2, 3, 4)})
    (tmp_path / "1").write_bytes(LAYOUTS["files"].pack([row], {"latents": "raw"}))
    with safe_open(tmp_path / "1", "pt") as file:
        assert json.loads(file.metadata()["flexvae"]) == {"latents": "raw", "size": [12, 16]}


def test_labels_are_the_top_level_folders():
    assert labels_of([Item(name, Path(name)) for name in ("a.png", "b.png")]) == [""]
    names = ("z/a.png", "Z/b.png", "z/y/c.png", "d.png")
    assert labels_of([Item(name, Path(name)) for name in names]) == ["", "Z", "z"]


def test_classes_that_tars_name_by_number_keep_their_numbers() -> None:
    def labels(*classes: str) -> list[str]:
        return labels_of([Item(f"a.tar/{n}.png", Path("a.tar"), label) for n, label in enumerate(classes)])

    assert labels("10", "2", "2") == [str(number) for number in range(11)]
    assert labels("10", "02") == ["02", "10"]
    assert labels("2", "cat") == ["2", "cat"]
    assert labels("", "1") == ["", "1"]
    assert labels("9999999999") == ["9999999999"]
    assert labels("999999", "7") == ["7", "999999"]
    assert len(labels("1019", "7")) == 1020
    assert labels("1020", "7") == ["1020", "7"]


def test_latents_that_are_not_finite_are_refused(flexvae, make_model, photos, tmp_path):
    run = make_model(tmp_path / "run", change=lambda weights: next(iter(weights.values())).fill_(float("nan")))
    refused = flexvae("encode", run, photos / "b", tmp_path / "out", "--workers", 0)
    assert refused.exit_code == Exit.MODEL
    assert "latents of c.png that are not finite" in refused.stderr
    assert not (tmp_path / "out" / MANIFEST).exists()


def test_a_type_that_has_no_room_for_the_latents_is_refused(flexvae, make_model, photos, tmp_path):
    run = make_model(tmp_path / "run", change=lambda weights: weights["encoder.2.weight"].mul_(1e8))
    refused = flexvae("encode", run, photos / "b", tmp_path / "out", "--workers", 0, "--dtype", "fp16")
    assert refused.exit_code == Exit.USAGE
    assert "--dtype: float16 has no room for the latents of c.png" in refused.stderr


def test_a_manifest_comes_back_as_it_was_written(flexvae, tiny_model, photos, tmp_path):
    assert flexvae("encode", tiny_model, photos, tmp_path / "out", "--workers", 0).exit_code == 0
    manifest = read_manifest(tmp_path / "out")
    written = (tmp_path / "out" / MANIFEST).read_bytes()
    assert manifest_bytes(manifest) == written
    assert sum('"name"' in line for line in written.decode().splitlines()) == len(manifest.images)
    discard_latents(OutputFolder(tmp_path / "out"))
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
    by_hand, training = (
        page.partition(f"## {title}")[2].partition("```python\n")[2].partition("```")[0]
        for title in ("By hand", "In training")
    )
    names: dict[str, torch.Tensor] = {}
    exec(by_hand, names)
    assert names["x"].shape == (1, 3, 37, 50)
    for shown, small in (("range(100)", "range(1)"), ("4, 64, 64", "2, 10, 13"), ("num_workers=4", "num_workers=0")):
        assert shown in training
        training = training.replace(shown, small, 1)
    exec(training, names)
    assert names["z"].shape == (2, 2, 10, 13)
    torch.testing.assert_close(
        names["raw"], 2 * names["z"] * torch.tensor([1, 0.25]).view(2, 1, 1) + torch.tensor([0.5, -0.5]).view(2, 1, 1)
    )
