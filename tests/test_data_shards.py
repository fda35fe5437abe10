"""Samples inside tars: the same as loose ones for every reader, and nothing that a hostile tar holds is followed."""

from __future__ import annotations

import errno
import gzip
import io
import json
import os
import pickle
import random
import tarfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flexvae_cli import plugins
from flexvae_cli.api.readers import BadFile
from flexvae_cli.config.settings import DataTable
from flexvae_cli.engine import source
from flexvae_cli.engine.checkpoint import newest_checkpoint
from flexvae_cli.engine.data import shards, sources
from flexvae_cli.engine.data.choosing import choose, found_in, made
from flexvae_cli.engine.data.files import read_numbers
from flexvae_cli.engine.data.images import read_image
from flexvae_cli.engine.data.members import fault_of
from flexvae_cli.engine.data.shards import is_shard
from flexvae_cli.engine.data.sources import Item, list_files, list_images, sizes_of
from flexvae_cli.engine.kind import samples_in
from flexvae_cli.errors import DataError

REAL = Path(__file__).parent / "data" / "real"
MOST = 64_000_000


def png(value: int = 0, size: tuple[int, int] = (9, 7)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (value, 30, 60)).save(file, "PNG")
    return file.getvalue()


def tar_of(members: Iterable[tuple[str | tarfile.TarInfo, bytes]], format: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar of members in order, whatever they are."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=format) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name) if isinstance(name, str) else name
            info.size = len(data) if isinstance(name, str) else info.size
            tar.addfile(info, io.BytesIO(data) if data else None)
    return file.getvalue()


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def faults(items: list[Item]) -> dict[str, str]:
    return {item.name: fault for item in items if (fault := fault_of(item.path))}


def usable(items: list[Item]) -> tuple[list[Item], list[BadFile]]:
    """The images whose headers can be read, and what is wrong with the others."""
    sizes = sizes_of(items, max_pixels=MOST, exif=True)
    good = [item for item, size in zip(items, sizes, strict=True) if not isinstance(size, BadFile)]
    return good, [size for size in sizes if isinstance(size, BadFile)]


# ---------------------------------------------------------------------------------------------------- as loose files


KINDS = {
    "audio": ("audio", (1, 64), {}),
    "ecg": ("arrays", (1, 64), {"low": 0, "high": 2047}),
    "ct": ("arrays", (1, 4, 4, 4), {"low": 0, "high": 2000}),
    "mri": ("volumes", (1, 4, 4, 4), {}),
    "multichannel": ("images", (4, 8, 8), {}),
    "grey": ("images", (1, 8, 8), {}),
}


@pytest.mark.parametrize("folder", KINDS)
def test_every_reader_reads_a_member_as_it_reads_a_file(folder: str, tmp_path: Path) -> None:
    pytest.importorskip({"audio": "soundfile", "volumes": "nibabel"}.get(KINDS[folder][0], "numpy"))
    name, like, values = KINDS[folder]
    chosen = made(plugins.installed().registry, name, values)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(REAL / folder, "./")
    loose = found_in(chosen, str(REAL / folder), "")
    packed = found_in(chosen, str(tmp_path), "")
    assert [item.name for item in packed] == [f"a.tar/{item.name}" for item in loose]
    for one, other in zip(loose, packed, strict=True):
        path = pickle.loads(pickle.dumps(other.path))
        assert chosen.reader.header(path, like) == chosen.reader.header(one.path, like)
        wanted, found = (read_numbers(chosen.reader, each, like, MOST) for each in (one.path, path))
        np.testing.assert_array_equal(found.sample().numpy(), wanted.sample().numpy())
        assert found.about == wanted.about
        assert isinstance(found.data, np.memmap) == isinstance(wanted.data, np.memmap)


def test_stacks_of_tiff_and_uncompressed_niftis_are_read_inside_a_tar(tmp_path: Path) -> None:
    tifffile, nibabel = pytest.importorskip("tifffile"), pytest.importorskip("nibabel")
    numbers = np.arange(5 * 6 * 7, dtype=np.uint8).reshape(5, 6, 7)
    tifffile.imwrite(tmp_path / "a.tif", numbers, photometric="minisblack")
    for name, kind in (("b.nii", nibabel.Nifti1Image), ("c.nii", nibabel.Nifti2Image)):
        nibabel.save(kind(numbers, np.eye(4)), tmp_path / name)
    (tmp_path / "d.nii").write_bytes(b"\0" * 400)
    (tmp_path / "shards").mkdir()
    with tarfile.open(tmp_path / "shards/a.tar", "w") as tar:
        for name in ("a.tif", "b.nii", "c.nii", "d.nii"):
            tar.add(tmp_path / name, name)
    chosen = made(plugins.installed().registry, "volumes", {})
    items = found_in(chosen, str(tmp_path / "shards"), "")
    for item in items[:3]:
        np.testing.assert_array_equal(chosen.reader.read(item.path, (1, 4, 4, 4)).data[..., 0], numbers)
    with pytest.raises(BadFile, match="no NIfTI"):
        chosen.reader.header(items[3].path, (1, 4, 4, 4))


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_of_every_format_are_read_whole(format: int, tmp_path: Path) -> None:
    long = "/".join(["folder" * 12] * 3)
    names = ["./a.png", "b/c.png", f"{long[:130]}/d.png"]
    names += [] if format == tarfile.USTAR_FORMAT else [f"{long}/é.png", f"{long}/\udcff.png"]
    (tmp_path / "a.tar").write_bytes(tar_of([(name, png(n)) for n, name in enumerate(names)], format))
    items = list_images(str(tmp_path / "a.tar"))
    assert {item.name for item in items} == {f"a.tar/{name.removeprefix('./')}" for name in names}
    values = {item.name: int(read_image(item.path, channels=3)[0, 0, 0]) for item in items}
    assert values == {f"a.tar/{name.removeprefix('./')}": n for n, name in enumerate(names)}


def test_a_member_is_a_file_to_whoever_opens_it(tmp_path: Path) -> None:
    (tmp_path / "s.tar").write_bytes(tar_of([("x.txt", b"no sample"), ("k/a.png", data := png())]))
    (item,) = list_images(str(tmp_path))
    path = item.path
    assert path.read_bytes() == data
    assert (path.name, path.suffix, path.is_file(), path.exists()) == ("a.png", ".png", True, True)
    assert path.parent == tmp_path / "s.tar/k"
    assert type(path.parent) is type(tmp_path)
    now, tar = path.stat(), (tmp_path / "s.tar").stat()
    assert (now.st_size, now.st_mtime_ns, now.st_ctime_ns) == (len(data), tar.st_mtime_ns, tar.st_ctime_ns)
    with path.open("rb") as file:
        file.seek(-4, os.SEEK_END)
        assert file.read(10) == data[-4:]
        assert file.seek(1000 + len(data)) == 1000 + len(data)
        assert file.read() == b""
        with pytest.raises(OSError, match="before the beginning"):
            file.seek(-1 - len(data), os.SEEK_END)
    with pytest.raises(io.UnsupportedOperation):
        path.open("r+b")


def test_what_stands_beside_a_sample_is_left_alone_and_hidden_files_are_passed_over(tmp_path: Path) -> None:
    members = [("1.jpg", b""), ("1.txt", b"a caption"), ("1.json", b"{}"), ("1.cls", b"7\n"), ("._1.jpg", b"x")]
    members += [("__MACOSX/1.jpg", b"x"), ("2.cls", b"cat"), ("2.png", png()), ("dog/3.png", png()), ("4.png", png())]
    (tmp_path / "s.tar").write_bytes(tar_of(members))
    items = list_images(str(tmp_path))
    found = {item.name: item.label for item in items}
    assert found == {"s.tar/1.jpg": "7", "s.tar/2.png": "cat", "s.tar/dog/3.png": "dog", "s.tar/4.png": ""}
    assert [bad.reason for bad in usable(items)[1]] == ["is empty"]


def test_tars_beside_loose_files_are_refused_unless_they_hold_other_things(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    for name, data in {
        "other.tar": tar_of([("x.txt", b"x")]),
        "b.tar.gz": b"\x1f\x8b",
        "c.tar": b"noise" * 200,
    }.items():
        (tmp_path / name).write_bytes(data)
    assert [item.name for item in list_images(str(tmp_path))] == ["a.png"]
    (tmp_path / "d.tar").write_bytes(tar_of([("a.png", png())]))
    with pytest.raises(DataError, match="files beside tars of such files"):
        list_images(str(tmp_path))


def test_the_kind_of_files_in_a_tar_decides_on_the_reader(tmp_path: Path) -> None:
    file = io.BytesIO()
    np.save(file, np.zeros((1, 8, 8), np.float32))
    (tmp_path / "a.tar").write_bytes(tar_of([("a.npy", file.getvalue()), ("c.txt", b"x")]))
    chosen, items = choose(plugins.installed().registry, str(tmp_path / "a.tar"), (1, 8, 8), "")
    assert (chosen.name, [item.name for item in items]) == ("arrays", ["a.tar/a.npy"])
    (tmp_path / "b.tar.gz").write_bytes(gzip.compress((tmp_path / "a.tar").read_bytes()))
    with pytest.raises(DataError) as caught:
        choose(plugins.installed().registry, str(tmp_path / "b.tar.gz"), (1, 8, 8), "")
    assert "decompress it" in str(caught.value.problems[1])


# ----------------------------------------------------------------------------------------------------------- hostile


def test_everything_hostile_in_a_tar_is_told_once_and_the_rest_is_read(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(png(200))
    sparse = special("sparse.png", tarfile.GNUTYPE_SPARSE)
    pax = tarfile.TarInfo("pax.png")
    pax.pax_headers, pax.size = {"GNU.sparse.major": "1", "GNU.sparse.name": "pax.png"}, 4
    zero = tarfile.TarInfo("x.png")
    zero.pax_headers, zero.size = {"path": "zero\0.png"}, 4
    members: list[tuple[str | tarfile.TarInfo, bytes]] = [
        ("good.png", png(1)),
        ("../up.png", png()),
        ("a/../../up.png", png()),
        (str(tmp_path / "absolute.png"), png()),
        (special("soft.png", tarfile.SYMTYPE, str(tmp_path / "secret.png")), b""),
        (special("hard.png", tarfile.LNKTYPE, "good.png"), b""),
        (special("fifo", tarfile.FIFOTYPE), b""),
        (special("disk", tarfile.BLKTYPE), b""),
        (special("tty.png", tarfile.CHRTYPE), b""),
        (special("odd.png", b"Q"), b""),
        (special("folder.png", tarfile.DIRTYPE), b""),
        (sparse, b""),
        (pax, b"xxxx"),
        ("good.png", png(9)),
        ("good.png", png(8)),
        ("n" * 300 + ".png", png()),
        ("deep/" * 300 + "x.png", png()),
        (zero, b"xxxx"),
        ("last.png", png(2)),
    ]
    (tmp_path / "in").mkdir()
    (tmp_path / "in/s.tar").write_bytes(tar_of(members))
    items = list_images(str(tmp_path / "in"))
    assert len({item.name for item in items}) == len(items) == len(members) - 1  # without the folder
    good, bad = usable(items)
    assert {item.name: int(read_image(item.path, channels=3)[0, 0, 0]) for item in good} == {
        "s.tar/good.png": 1,
        "s.tar/last.png": 2,
    }
    told = sorted(each.reason for each in bad)
    counts = [
        "absolute",
        "leads out",
        "more than once",
        "a device",
        "a FIFO",
        "a hard link",
        "a symbolic link",
        "too long",
    ]
    assert [sum(what in reason for reason in told) for what in counts] == [1, 2, 2, 2, 1, 1, 1, 2]
    assert sum("a zero byte" in reason for reason in told) == 1
    assert sum("a sparse file" in reason for reason in told) == 2
    assert sum("of an unknown kind" in reason for reason in told) == 1
    assert all(not item.name.startswith(("/", ".")) and ".." not in item.name.split("/") for item in items)
    assert all(len(os.fsencode(reason)) < 400 for reason in told)


@pytest.mark.parametrize("keep", ["header", "data", "padding", "no end", "half an end"])
def test_a_tar_that_is_cut_is_told_and_what_is_whole_is_read(keep: str, tmp_path: Path) -> None:
    whole = tar_of([("a.png", a := png(1)), ("b.png", b := png(2))], tarfile.USTAR_FORMAT)
    padded = -(-len(a) // 512) * 512
    second = 512 + padded
    cut = {
        "header": second + 100,
        "data": second + 512 + 10,
        "padding": second + 512 + len(b),
        "no end": second + 512 + padded,
        "half an end": second + 512 + padded + 300,
    }[keep]
    (tmp_path / "s.tar").write_bytes(whole[:cut])
    items = list_images(str(tmp_path))
    good, bad = usable(items)
    assert (
        [item.name for item in good] == ["s.tar/a.png"]
        if keep in ("header", "data")
        else ["s.tar/a.png", "s.tar/b.png"]
    )
    assert len(bad) == 1
    assert "is truncated" in bad[0].reason if keep == "data" else "it stops after" in bad[0].reason


def resized(block: bytes, size: int) -> bytes:
    """A header that claims another size, its checksum right."""
    block = block[:124] + (b"%011o\0" % size if size < 8**11 else b"\x80" + size.to_bytes(11, "big")) + block[136:]
    total = sum(block[:148]) + 8 * 32 + sum(block[156:])
    return block[:148] + b"%06o\0 " % total + block[156:]


@pytest.mark.parametrize("size", [0, 5, 600, 5_000, 1 << 40, 1 << 80])
def test_a_header_that_lies_about_its_size_costs_what_it_hides_and_no_more(size: int, tmp_path: Path) -> None:
    whole = tar_of([(f"{n}.png", png(n, (64, 64))) for n in range(4)], tarfile.USTAR_FORMAT)
    at = whole.index(b"1.png")
    (tmp_path / "s.tar").write_bytes(whole[:at] + resized(whole[at : at + 512], size) + whole[at + 512 :])
    good, bad = usable(list_images(str(tmp_path)))
    pixels = {item.name: item for item in good}
    assert int(read_image(pixels["s.tar/0.png"].path, channels=3)[0, 0, 0]) == 0
    assert bad or len(good) < 4 or size == 600
    assert len(bad) <= 2


def test_a_long_name_that_claims_gigabytes_is_not_read(tmp_path: Path) -> None:
    for kind in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE):
        block = special("x", kind).tobuf(tarfile.USTAR_FORMAT)
        path = tmp_path / "s.tar"
        path.write_bytes(resized(block, 1 << 34))
        os.truncate(path, 1 << 35)  # a hole: nothing is written
        (item,) = list_images(str(tmp_path))
        assert "a name of 17,179,869,184 bytes" in faults([item])["s.tar"]


@pytest.mark.parametrize(("data", "why"), [(b"", "is empty"), (b"noise" * 300, "is not a tar file")])
def test_what_is_no_tar_is_told(data: bytes, why: str, tmp_path: Path) -> None:
    (tmp_path / "s.tar").write_bytes(data)
    assert list(faults(list_images(str(tmp_path)))) == ["s.tar"]
    assert why in usable(list_images(str(tmp_path)))[1][0].reason


def test_a_header_of_zeros_and_a_second_tar_are_told(tmp_path: Path) -> None:
    whole = tar_of([(f"{n}.png", png(n)) for n in range(3)], tarfile.USTAR_FORMAT)
    at, path = whole.index(b"1.png"), tmp_path / "s.tar"
    path.write_bytes(whole[:at] + bytes(512) + whole[at + 512 :])
    assert faults(items := list_images(str(path))) == {
        "s.tar": f"is damaged at byte {at:,} (a lone empty block): what stands behind is not read"
    }
    assert [item.name for item in usable(items)[0]] == ["s.tar/0.png"]
    path.write_bytes(whole + tar_of([("b.png", png())]))
    assert faults(items := list_images(str(path))) == {"s.tar": "holds another tar behind its end, which is not read"}
    assert len(usable(items)[0]) == 3
    for tail in (b"", bytes(512), bytes(700), bytes(1024) + b"signature" * 200, bytes(20_000)):
        path.write_bytes(
            whole.rstrip(b"\0").ljust(-(-len(whole.rstrip(b"\0")) // 512) * 512, b"\0") + bytes(1024) + tail
        )
        assert (faults(items := list_images(str(path))), len(items)) == ({}, 3)


def test_classes_are_read_whole_and_what_is_too_long_for_one_is_told(tmp_path: Path) -> None:
    classes = {"a": "c" * 40 + "1", "b": "c" * 40 + "2", "c": "c" * 64, "d": "c" * 65}
    members = [
        (f"{key}.{end}", png() if end == "png" else text.encode())
        for key, text in classes.items()
        for end in ("png", "cls")
    ]
    (tmp_path / "s.tar").write_bytes(tar_of(members))
    items = list_images(str(tmp_path))
    assert faults(items) == {"s.tar/d.cls": "names a class in 65 bytes; 64 are the most"}
    assert [item.label for item in items if item.name.endswith(".png")] == [*list(classes.values())[:3], ""]


def test_no_two_members_have_one_name_whatever_they_are_called(tmp_path: Path) -> None:
    odd = "a.png (member 3 of those that count)"
    (tmp_path / "s.tar").write_bytes(tar_of([(f"{odd}", png()), *[("a.png", png())] * 3]))
    items = list_images(str(tmp_path))
    assert len({item.name for item in items}) == len(items) == 4
    assert len(usable(items)[0]) == 2


def test_a_reader_is_given_enough_to_tell_a_nifti(tmp_path: Path) -> None:
    seen: list[int] = []

    def looked(_: str, head: Callable[[], bytes]) -> bool:
        seen.append(len(head()))
        return False

    (tmp_path / "a").write_bytes(bytes(600))
    (tmp_path / "s.tar").write_bytes(tar_of([("b", bytes(600)), ("c", bytes(9))]))
    list_files(str(tmp_path), looked)
    assert sorted(seen) == [9, 512, 512, 512]  # the tar is asked for as well


def test_what_goes_wrong_inside_a_tar_is_told_with_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def worn(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    (tmp_path / "s.tar").write_bytes(tar_of([("a.png", png())]))
    monkeypatch.setattr(shards, "tar_headers", worn)
    with pytest.raises(DataError, match=f"cannot list {tmp_path}.*: input/output error"):
        list_images(str(tmp_path))


def test_compressed_tars_are_told_with_what_to_do() -> None:
    for name in ("a.tar", "A.TAR", "a.tar.gz", "b.tgz", "c.tar.zst", "d.b.tar.xz", "e.tbz2"):
        assert is_shard(name), name
    for name in ("tar", "a.gz", "a.nii.gz", "a.tar.png", "atar"):
        assert not is_shard(name), name


def test_a_tar_that_is_changed_after_it_was_listed_is_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    path.write_bytes(tar_of([("a.png", png(1)), ("b.png", png(2))]))
    items = list_images(str(path))
    path.write_bytes(tar_of([("b.png", png(2)), ("a.png", png(1, (99, 99)))]))
    with pytest.raises(BadFile, match="changed since it was listed"):
        read_image(items[0].path, channels=3)
    path.unlink()
    with pytest.raises(BadFile, match="cannot be opened"):
        read_image(items[0].path, channels=3)


def test_paths_made_from_that_of_a_member_are_those_of_ordinary_files(tmp_path: Path) -> None:
    (tmp_path / "s.tar").write_bytes(tar_of([("in/a.png", png(1))]))
    member = list_images(str(tmp_path))[0].path
    assert (member.exists(), member.is_file(), member.stat().st_size) == (True, True, len(png(1)))
    beside = tmp_path / "s.txt"
    beside.write_text("found")
    for path in (member.with_suffix(".txt"), member.with_name("a.txt"), member.resolve(), member.absolute().parents[1]):
        assert isinstance(pickle.loads(pickle.dumps(path)), Path)
        assert fault_of(path) == ""
    for path in (member.with_suffix(".txt"), member.with_name("a.txt")):
        assert (path.exists(), path.is_file()) == (False, False)
        with pytest.raises(OSError, match=r"s\.tar"):
            path.stat()
        with pytest.raises(OSError, match=r"s\.tar"):
            path.read_text()
    assert member.parents[1].is_file()
    assert member.parents[1].with_suffix(".txt").read_text() == "found"
    assert member.parents[1].stat() == (tmp_path / "s.tar").stat()


@pytest.mark.parametrize(
    ("name", "reader", "times"),
    [("a.png", None, 1), ("a.png", "images", 1), ("a.npy", None, 2), ("a.npy", "arrays", 1)],
)
def test_the_headers_of_a_tar_are_read_once_whatever_readers_are_tried(
    name: str, reader: str | None, times: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = io.BytesIO()
    np.save(file, np.zeros((3, 8, 8), np.float32))
    content = png() if name.endswith("png") else file.getvalue()
    (tmp_path / "s.tar").write_bytes(tar_of([(f"{n}{name}", content) for n in range(4)]))
    listed, read, looked = list[str](), list[int](), list[int]()
    members, tar_headers, headers = sources.members, shards.tar_headers, source.usable_files

    def counted(shard: str, *how: Any) -> Any:
        listed.append(shard)
        return members(shard, *how)

    def counted_headers(file: Any, there: int) -> Any:
        read.append(there)
        return tar_headers(file, there)

    def looked_at(items: Any, *how: Any) -> Any:
        looked.append(len(items))
        return headers(items, *how)

    monkeypatch.setattr(sources, "members", counted)
    monkeypatch.setattr(shards, "tar_headers", counted_headers)
    monkeypatch.setattr(source, "usable_files", looked_at)
    table = {"source": str(tmp_path), "input": "3x7x7", "workers": 0, **({"reader": reader} if reader else {})}
    found = source.open_source(DataTable.model_validate(table), 0)
    assert len(found.training) + found.held_out == 4
    assert listed == ["s.tar"] * times
    assert read == [(tmp_path / "s.tar").stat().st_size]
    assert looked == ([] if name.endswith("png") else [4])


def test_a_tar_of_another_kind_than_the_model_was_trained_on_is_read_once(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = io.BytesIO()
    np.save(file, np.zeros((3, 8, 8), np.float32))
    for shard in ("a", "b"):
        (tmp_path / f"{shard}.tar").write_bytes(tar_of([("x.npy", file.getvalue())]))
    read, tar_headers = list[int](), shards.tar_headers
    monkeypatch.setattr(shards, "tar_headers", lambda file, there: read.append(there) or tar_headers(file, there))
    checkpoint, _ = newest_checkpoint(tiny_model)
    assert checkpoint is not None
    kind, items = samples_in(checkpoint.model, str(tmp_path), "source")
    assert kind.chosen.name == "arrays"
    assert [item.name for item in items] == ["a.tar/x.npy", "b.tar/x.npy"]
    assert len(read) == 2
    (tmp_path / "c.tar").write_bytes(tar_of([("x.png", png())]))
    assert [item.name for item in samples_in(checkpoint.model, str(tmp_path), "source")[1]] == ["c.tar/x.png"]
    assert len(read) == 5


def test_damaged_tars_are_listed_and_read_without_any_other_error(tmp_path: Path, fuzz_factor: int) -> None:
    rng, path = random.Random(5), tmp_path / "s.tar"
    whole = tar_of(
        [("a.png", png(1)), ("é" * 90 + ".png", png(2)), ("c.cls", b"1"), ("c.npy", b"x"), ("d.png", png(3))]
    )
    sound = 0
    for _ in range(300 * fuzz_factor):
        data = bytearray(whole)
        for _ in range(rng.choice((1, 3, 20))):
            data[rng.randrange(len(data))] = rng.choice((0, 255, rng.randrange(256)))
        if rng.random() < 0.2:
            del data[rng.randrange(len(data)) :]
        path.write_bytes(data)
        try:
            items = list_images(str(tmp_path))
        except DataError:  # no image is left
            continue
        assert len({item.name for item in items}) == len(items)
        for item in usable(items)[0]:
            with suppress(BadFile):
                sound += read_image(item.path, channels=3).shape == (7, 9, 3)
    assert sound > 100


def test_a_tar_of_very_many_members_is_listed_in_the_memory_that_its_samples_take(
    tmp_path: Path, fuzz_factor: int
) -> None:
    count = 10_000 * fuzz_factor
    block = special("same.png", tarfile.REGTYPE).tobuf(tarfile.USTAR_FORMAT)
    with (tmp_path / "same.tar").open("wb") as file:
        file.writelines(block for _ in range(count))
        file.write(bytes(1024))
    items = list_images(str(tmp_path))
    assert len({item.name for item in items}) == count
    assert len(faults(items)) == count - 1


# ---------------------------------------------------------------------------------------------------------- commands


def succeeds(flexvae: Any, *arguments: object) -> Any:
    done = flexvae(*arguments)
    assert done.exit_code == 0, (arguments, done.stderr)
    return done


def test_every_command_takes_shards(flexvae: Any, tmp_path: Path) -> None:
    shards, loose = tmp_path / "in", tmp_path / "loose"
    loose.mkdir()
    shards.mkdir()
    rng = np.random.default_rng(0)
    for shard in range(2):
        members: list[tuple[str | tarfile.TarInfo, bytes]] = []
        for n in range(6):
            file = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (20, 24, 3)).astype(np.uint8)).save(file, "PNG")
            (loose / f"{shard}-{n}.png").write_bytes(file.getvalue())
            members += [(f"{shard}-{n}.png", file.getvalue()), (f"{shard}-{n}.cls", b"%d" % (n + 4 * shard))]
        members += [("../evil.png", png()), (special("pipe.png", tarfile.FIFOTYPE), b"")]
        (shards / f"{shard}.tar").write_bytes(tar_of(members))
    (tmp_path / "encoder.json").write_text('["C2d_3_8_4_4", "SiLU", "C2d_8_4_1"]')
    (tmp_path / "decoder.json").write_text('["C2d_2_8_3_1_1", "SiLU", "UpS_4", "C2d_8_3_3_1_1"]')
    (tmp_path / "c.toml").write_text(
        f'[model]\nencoder = "encoder.json"\ndecoder = "decoder.json"\n'
        f'[data]\nsource = "{shards}"\ninput = "3x16x16"\nworkers = 2\ncache_dir = "kept"\n'
        '[train]\nrun_dir = "run"\nmax_steps = 3\nbatch_size = 4\ndevice = "cpu"\n'
    )
    succeeds(flexvae, "train", "--config", tmp_path / "c.toml")
    run = tmp_path / "run"
    bad = [json.loads(line) for line in (run / "bad_files.jsonl").read_text().splitlines()]
    assert sorted(row["name"] for row in bad) == [
        "0.tar/evil.png",
        "0.tar/pipe.png",
        "1.tar/evil.png",
        "1.tar/pipe.png",
    ]
    succeeds(flexvae, "train", "--config", tmp_path / "c.toml", "--resume", "--set", "train.max_steps=5")

    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if "out" not in path.parts}
    succeeds(flexvae, "infer", run, shards, tmp_path / "out", "--workers", 0)
    succeeds(flexvae, "infer", run, loose, tmp_path / "expected", "--workers", 0)
    for path in sorted((tmp_path / "expected").glob("*-*.png")):
        packed = tmp_path / "out" / f"{path.name[0]}.tar" / path.name
        assert packed.read_bytes() == path.read_bytes()
    assert len(list((tmp_path / "out").rglob("*-*.png"))) == 12
    assert len((tmp_path / "out/bad_files.jsonl").read_text().splitlines()) == 4
    assert not list(tmp_path.rglob("evil*"))
    assert all(path.stat().st_mtime_ns == when for path, when in before.items() if path.is_file())

    for layout in ("shards", "wds"):
        latents = tmp_path / layout
        succeeds(flexvae, "encode", run, shards, latents, "--workers", 0, "--format", layout)
        manifest = json.loads((latents / "manifest.json").read_text())
        assert manifest["labels"] == [str(n) for n in range(10)]
        assert {image["name"]: image["label"] for image in manifest["images"]} == {
            f"{shard}.tar/{shard}-{n}.png": n + 4 * shard for shard in range(2) for n in range(6)
        }
        assert len(manifest["failures"]) == 4
    again = succeeds(flexvae, "encode", run, shards, tmp_path / "wds", "--workers", 0, "--format", "wds", "--json")
    assert json.loads(again.stdout)["reused"] == 12
    succeeds(flexvae, "decode", run, tmp_path / "wds", tmp_path / "decoded")
    assert (tmp_path / "decoded/1.tar/1-5.png").read_bytes() == (tmp_path / "out/1.tar/1-5.png").read_bytes()
    checked = flexvae("data", "check", shards, "--json")
    found = json.loads(checked.stdout)
    assert (checked.exit_code, found["images"], len(found["unusable"])) == (3, 12, 4)
    assert len(list((tmp_path / "kept").rglob("*.npy"))) == 12
