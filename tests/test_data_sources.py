from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from flexvae_cli.engine.data.buckets import usable
from flexvae_cli.engine.data.opening import image_size
from flexvae_cli.engine.data.preparation import Preparation
from flexvae_cli.engine.data.sources import Item, list_images, split
from flexvae_cli.engine.randomness import seed_of
from flexvae_cli.errors import DataError, UsageError

PNG = b"\x89PNG\r\n\x1a\n" + bytes(30)


def names(root: Path) -> list[str]:
    return [item.name for item in list_images(str(root))]


def touch(root: Path, *files: str, content: bytes = b"x") -> None:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(content)


def items(count: int, prefix: str = "") -> list[Item]:
    return [Item(f"{prefix}{i}.jpg", Path(f"{i}.jpg")) for i in range(count)]


def test_the_built_in_photographs() -> None:
    train, validation = list_images("builtin:scenery"), list_images("builtin:scenery/val")
    assert (len(train), len(validation)) == (60, 10)
    assert not {i.name for i in train} & {i.name for i in validation}
    assert all(image_size(i.path) == (256, 512) for i in train + validation)
    with pytest.raises(
        UsageError, match=r"data.source: no built-in set 'builtin:scenry'; did you mean 'builtin:scenery'"
    ):
        list_images("builtin:scenry")
    with pytest.raises(UsageError, match=r"infer.input: .*there are 'builtin:scenery' and"):
        list_images("builtin:" + 40 * "q", where="infer.input")


def test_a_folder_is_searched_through_in_the_order_of_bytes(tmp_path: Path) -> None:
    touch(tmp_path, "b.JPG", "a/z.png", "a.png", "Z.webp", "ä.tif", "a/deep/er/1.avif", "empty.gif", "drawing.svg")
    touch(
        tmp_path, ".hidden.png", ".git/x.png", "__MACOSX/x.png", "a/.DS_Store", "Thumbs.db", "README.txt", "labels.csv"
    )
    expected = ["Z.webp", "a.png", "a/deep/er/1.avif", "a/z.png", "b.JPG", "drawing.svg", "empty.gif", "ä.tif"]
    assert names(tmp_path) == expected
    assert [i.path for i in list_images(str(tmp_path))] == [tmp_path / name for name in expected]


def test_other_extensions_count_by_their_content(tmp_path: Path) -> None:
    touch(tmp_path, "none", "image.dat", "photo.jpg_large", content=PNG)
    touch(tmp_path, "scan", "raw.nef", "slide.svs", content=b"II*\0" + bytes(30))
    touch(tmp_path, "SOURCES", "notes.md", content=b"P1 is a text like any other")
    assert names(tmp_path) == ["image.dat", "none", "photo.jpg_large", "scan"]


def test_names_that_are_not_text(tmp_path: Path) -> None:
    touch(tmp_path, "a\nb.png", os.fsdecode(b"\xff.png"), "-rf.png")
    listed = names(tmp_path)
    assert [os.fsencode(n) for n in listed] == [b"-rf.png", b"a\nb.png", b"\xff.png"]
    assert len(split(list_images(str(tmp_path)), 0.5)[0]) in (1, 2)


def test_links(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    touch(root, "sub/real.png", ".store/hidden.png")
    touch(outside, "foreign.png")
    (root / "loop").symlink_to(".")
    (root / "sub/up").symlink_to("../sub")
    (root / "away").symlink_to(outside)
    (root / "foreign.png").symlink_to(outside / "foreign.png")
    (root / "inside.png").symlink_to(".store/hidden.png")
    (root / "itself.png").symlink_to("itself.png")
    (root / "dangling.png").symlink_to("nowhere.png")
    os.mkfifo(root / "pipe.png")
    assert names(root) == ["inside.png", "sub/real.png"]
    (tmp_path / "entrance").symlink_to(root)
    assert names(tmp_path / "entrance") == ["inside.png", "sub/real.png"]


def test_a_file_is_a_source(tmp_path: Path) -> None:
    touch(tmp_path, "one.xyz")
    assert list_images(str(tmp_path / "one.xyz")) == [Item("one.xyz", tmp_path / "one.xyz")]


def test_a_folder_of_links_that_lead_out_of_it_says_so(tmp_path: Path) -> None:
    touch(tmp_path / "there", "one.png")
    links = tmp_path / "links"
    links.mkdir()
    (links / "one.png").symlink_to(tmp_path / "there" / "one.png")
    (links / "folder").symlink_to(tmp_path / "there")
    with pytest.raises(DataError, match=r"no images in .*; 2 links in it lead elsewhere and are not followed"):
        list_images(str(links))


def test_sources_that_hold_nothing(tmp_path: Path) -> None:
    touch(tmp_path, "README.txt")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match=r"data.source: no such folder: .*gone"):
        list_images(str(tmp_path / "gone"))
    with pytest.raises(DataError, match=r"(?s)data.source: no images in .*JPEG, PNG"):
        list_images(str(tmp_path))
    with pytest.raises(DataError, match="neither a file nor a folder"):
        list_images(str(tmp_path / "pipe"))


def test_a_split_of_many_images_never_moves_an_old_one() -> None:
    old, new = items(200), items(300, "new")
    for fraction in (0.05, 0.3, 0.9):
        before, after = split(old, fraction), split(sorted(old + new, key=lambda i: i.name), fraction)
        assert {i.name for i in before[0]} <= {i.name for i in after[0]}
        assert {i.name for i in before[1]} <= {i.name for i in after[1]}
        assert len(after[1]) == pytest.approx(500 * fraction, abs=50)
        assert [i for i in old if i not in before[1]] == before[0]


def share(item: Item) -> float:
    """The hash that the split goes by, from 0 to 1."""
    return seed_of("validation", item.name) / 2**63


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("count", range(2, 21))
def test_only_a_stand_in_moves_when_files_are_added(count: int, fraction: float) -> None:
    """Folders that grow from `count` to 40 images, one file at a time, in 10 kinds of names."""
    for prefix in range(10):
        everything = items(40, f"{prefix}-")
        train, validation = split(everything[:count], fraction)
        for size in range(count + 1, 41):
            old, added = everything[: size - 1], share(everything[size - 1])
            stands_in_for_validation = min(map(share, old)) >= fraction
            stands_in_for_training = max(map(share, old)) < fraction
            more_train, more_validation = split(everything[:size], fraction)
            held_out_now = [i for i in train if i in more_validation]
            trained_on_now = [i for i in validation if i in more_train]
            left_validation = stands_in_for_validation and added < min(map(share, old))
            left_training = stands_in_for_training and added > max(map(share, old))
            assert trained_on_now == (validation if left_validation else [])
            assert held_out_now == (train if left_training else [])
            assert len(trained_on_now) <= 1
            assert len(held_out_now) <= 1
            train, validation = more_train, more_validation


@pytest.mark.parametrize("count", range(2, 21))
def test_files_that_are_removed_move_none_of_the_others(count: int) -> None:
    for prefix in range(20):
        everything = items(40, f"{prefix}-")
        train, validation = split(everything, 0.3)
        fewer_train, fewer_validation = split(everything[:count], 0.3)
        if min(map(share, everything[:count])) < 0.3 <= max(map(share, everything[:count])):
            assert fewer_train == [i for i in everything[:count] if i in train]
            assert fewer_validation == [i for i in everything[:count] if i in validation]


def test_the_shares_of_folders_without_a_hash_below_the_fraction() -> None:
    """As the docstring of `split` and docs/training.md tell them."""
    for count, expected in ((10, 0.35), (20, 0.12), (50, 0.005)):
        found = [min(map(share, items(count, f"{prefix}-"))) >= 0.1 for prefix in range(400)]
        assert sum(found) / 400 == pytest.approx(expected, abs=0.06)


@pytest.mark.parametrize("count", [2, 3, 7])
@pytest.mark.parametrize("fraction", [1e-9, 0.1, 0.5, 1 - 1e-9])
def test_both_sides_of_a_split_have_some(count: int, fraction: float) -> None:
    for prefix in "abcdefgh":
        everything = items(count, prefix)
        train, validation = split(everything, fraction)
        assert train
        assert validation
        assert sorted(train + validation, key=lambda i: i.name) == everything
        assert split(everything[::-1], fraction) == (train[::-1], validation[::-1])


def test_splits_that_leave_one_side_empty() -> None:
    assert split(items(5), 0) == (items(5), [])
    assert split([], 0.5) == ([], [])
    for prefix in "abcdefgh":  # of which some have a hash below a half
        assert split(items(1, prefix), 0.5) == (items(1, prefix), [])


def test_headers_tell_what_is_usable(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("L", (40, 30)).save(tmp_path / "a_good.png")
    Image.new("L", (39, 30)).save(tmp_path / "b_narrow.png")
    Image.new("L", (40, 29)).save(tmp_path / "c_low.png")
    Image.new("L", (40, 30)).save(tmp_path / "d_turned.jpg", exif=exif)
    Image.new("L", (30, 40)).save(tmp_path / "e_turned_good.jpg", exif=exif)
    Image.new("L", (400, 300)).save(tmp_path / "f_large.png")
    touch(tmp_path, "g_empty.png", content=b"")
    found = list_images(str(tmp_path))
    shape = (3, 30, 40)
    good, bad = usable(found, [shape], [Preparation(shape, max_pixels=100_000)])
    assert [i.name for i in good] == ["a_good.png", "e_turned_good.jpg"]
    assert {b.path.name[0]: b.reason for b in bad} == {
        "b": "is too small: 30x39 pixels (height x width), wanted are 30x40 or more",
        "c": "is too small: 29x40 pixels (height x width), wanted are 30x40 or more",
        "d": "is too small: 40x30 pixels (height x width), wanted are 30x40 or more",
        "f": "has 0.12 megapixels; data.max_pixels allows 0.1",
        "g": "is empty",
    }
    upright, _ = usable(found, [shape], [Preparation(shape, max_pixels=10**9, exif=False)])
    assert [i.name[0] for i in upright] == ["a", "d", "f"]
