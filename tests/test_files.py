"""Durable writing."""

from __future__ import annotations

import errno
import os
import stat

import pytest
import torch

from flexvae_cli.engine import files, reading, tensorfiles
from flexvae_cli.errors import Exit, ResourceError

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")


@pytest.fixture
def umask_027():
    before = os.umask(0o027)
    yield
    os.umask(before)


def test_write_new_returns_the_digest_of_what_is_on_disk(tmp_path):
    path = tmp_path / "a"
    digest = files.write_new(path, [b"one ", memoryview(b"two"), b""])
    assert path.read_bytes() == b"one two"
    assert digest == reading.digest_of(path)
    assert digest.bytes == 7


def test_write_new_honours_the_umask(tmp_path, umask_027):
    files.write_new(tmp_path / "a", [b"x"])
    tensorfiles.write_tensors(tmp_path / "b", {"w": torch.zeros(1)})
    files.replace_file(tmp_path / "c", b"x")
    assert {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in "abc"} == {0o640}


def test_write_new_goes_on_after_short_writes(tmp_path, monkeypatch):
    whole = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: whole(descriptor, data[:3]))
    files.write_new(tmp_path / "a", [b"0123456789"])
    assert (tmp_path / "a").read_bytes() == b"0123456789"


@pytest.mark.parametrize("make", [lambda p, o: p.write_bytes(b"old"), lambda p, o: p.symlink_to(o)])
def test_write_new_never_takes_a_name_that_is_there(tmp_path, make):
    outside = tmp_path / "outside"
    make(tmp_path / "a", outside)
    with pytest.raises(FileExistsError):
        files.write_new(tmp_path / "a", [b"new"])
    assert not outside.exists()


def test_replace_file_replaces_a_link_and_not_its_target(tmp_path):
    outside = tmp_path / "outside"
    outside.write_bytes(b"mine")
    (tmp_path / "a").symlink_to(outside)
    files.replace_file(tmp_path / "a", b"new")
    assert outside.read_bytes() == b"mine"
    assert not (tmp_path / "a").is_symlink()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "outside"]


def test_publish_directory_refuses_a_name_that_is_taken(tmp_path):
    (tmp_path / "final").mkdir()
    (tmp_path / "final" / "mine").write_bytes(b"mine")
    with files.temporary_directory(tmp_path / ".tmp-1") as temporary:
        files.write_new(temporary / "theirs", [b"theirs"])
        with pytest.raises(OSError):
            files.publish_directory(temporary, tmp_path / "final")
    assert [p.name for p in tmp_path.iterdir()] == ["final"]
    assert (tmp_path / "final" / "mine").read_bytes() == b"mine"


def test_remove_orphans_takes_only_orphans_and_follows_no_link(tmp_path):
    keep = tmp_path / "keep"
    keep.mkdir()
    (keep / "mine").write_bytes(b"mine")
    (tmp_path / ".tmp-12-5").mkdir()
    (tmp_path / ".tmp-12-5" / "half").write_bytes(b"half")
    (tmp_path / ".del-12-step").mkdir()
    (tmp_path / ".tmp-12-config.json").write_bytes(b"half")
    (tmp_path / ".tmp-12-link").symlink_to(keep)
    theirs = [".tmp-notes", ".tmp-12", ".tmp-x-5", ".del-me", "a.tmp-12-5"]
    for name in theirs:
        (tmp_path / name).mkdir()
    files.remove_orphans(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["keep", *theirs])
    assert (keep / "mine").exists()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_told_with_needed_and_free(tmp_path, number):
    with pytest.raises(files.DiskFullError) as caught, files.writing(tmp_path / "x", 12_345_678):
        raise OSError(number, "full")
    assert caught.value.code == Exit.RESOURCES
    assert f"{tmp_path / 'x'}: no space left: 12.3 MB needed, " in str(caught.value)
    assert " MB free" in str(caught.value)


def test_other_errors_of_writing_name_the_path(tmp_path):
    with pytest.raises(ResourceError, match="x: cannot be written: Read-only") as caught, files.writing(tmp_path / "x"):
        raise OSError(errno.EROFS, "Read-only file system")
    assert not isinstance(caught.value, files.DiskFullError)


def test_require_space(tmp_path):
    files.require_space(tmp_path / "not" / "yet", 1)
    with pytest.raises(files.DiskFullError, match="needed"):
        files.require_space(tmp_path / "not" / "yet", 1 << 60)


@pytest.mark.parametrize(("setting", "length"), [("file.write", 0), ("file.write:2", 1), ("file.written:2", 2)])
def test_crash_point_kills_at_the_passage_asked_for(tmp_path, monkeypatch, setting, length):
    monkeypatch.setenv("FLEXVAE_CRASH_AT", setting)
    if (child := os.fork()) == 0:
        files.write_new(tmp_path / "a", [b"1", b"2", b"3"])
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -9
    assert (tmp_path / "a").stat().st_size == length
