"""Durable writing, strict reading."""

from __future__ import annotations

import errno
import json
import os
import pickle
import stat
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from flexvae_cli.engine import files
from flexvae_cli.errors import Exit, ModelError, ResourceError

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
    assert digest == files.digest_of(path)
    assert digest.bytes == 7


def test_write_new_honours_the_umask(tmp_path, umask_027):
    files.write_new(tmp_path / "a", [b"x"])
    files.write_tensors(tmp_path / "b", {"w": torch.zeros(1)})
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
    (tmp_path / ".tmp-link").symlink_to(keep)
    files.remove_orphans(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["keep"]
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


# ------------------------------------------------------------------------------------------------------------- JSON

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.text(), json_values, max_size=4))
def test_json_round_trip_and_seal(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("json") / "a.json"
    files.write_new(path, [files.json_bytes(value)])
    again = files.read_json(path)
    assert again == value
    assert files.seal_of(again) == files.seal_of(dict(reversed(value.items())))


def test_seal_sees_through_tuples_and_number_keys_only():
    assert files.seal_of({"a": (1, 2), "b": {10: 1, 9: 2}}) == files.seal_of({"b": {"9": 2, "10": 1}, "a": [1, 2]})
    assert files.seal_of({"a": 1}) != files.seal_of({"a": 1.5})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "not readable JSON"),
        (b"{", "not readable JSON"),
        (b"[]", "not a JSON object"),
        (b"3", "not a JSON object"),
        (b'{"a": 1, "b": {"a": 1, "a": 2}}', "key 'a' is there twice"),
        (b'{"a": NaN}', "NaN is not a finite number"),
        (b'{"a": -Infinity}', "not a finite number"),
        (b'{"a": 1e999}', "1e999 is not a finite number"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not readable JSON"),
        (b'{"a": "\xff"}', "utf-8"),
        (b'\xef\xbb\xbf{"a": 1}', "BOM"),
        ('{"a": 1}'.encode("utf-16"), "not readable JSON"),
        (b'{"a": "\x00"}', "control character"),
        (b'{"a": ' + b"[" * 64 + b"]" * 64 + b"}", "64 levels"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "deep|recursion"),
        (b'{"a": 1}' + b" " * 1000, "more than 1,000 bytes"),
    ],
)
def test_read_json_refuses(tmp_path, text, reason):
    path = tmp_path / "a.json"
    path.write_bytes(text)
    with pytest.raises(ModelError, match=reason) as caught:
        files.read_json(path, limit=1000 if b" " * 1000 in text else files.JSON_BYTES)
    assert caught.value.problems[0].where == str(path)


def test_read_json_takes_63_lists_in_an_object(tmp_path):
    (tmp_path / "a").write_bytes(b'{"a": ' + b"[" * 63 + b"]" * 63 + b"}")
    assert files.read_json(tmp_path / "a")


def test_reading_a_pipe_a_directory_or_nothing_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name, reason in {"pipe": "not a regular file", ".": "not a regular file", "none": "is missing"}.items():
        for read in (files.read_json, files.read_tensors):
            with pytest.raises(ModelError, match=reason):
                read(tmp_path / name)


# ---------------------------------------------------------------------------------------------------------- tensors


def awkward_tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    bits = torch.randint(0, 256, (24,), dtype=torch.uint8)
    tensors = {f"plain.{name}": bits.view(getattr(torch, name)) for name in files._DTYPES.values() if name != "bool"}
    base = torch.randn(4, 6)
    return tensors | {
        "bool": bits > 100,
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 3),
        "transposed": base.t(),
        "shared": base[1:],
        "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "parameter": torch.nn.Parameter(base),
        "näme \n": torch.ones(1),
    }


def test_tensors_come_back_bit_for_bit(tmp_path):
    tensors = awkward_tensors()
    files.write_tensors(tmp_path / "a.safetensors", tensors)
    for read in (files.read_tensors, load_file):
        again = read(tmp_path / "a.safetensors")
        assert again.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert again[name].dtype == tensor.dtype
            assert again[name].shape == tensor.shape
            assert again[name].untyped_storage().nbytes() >= tensor.nbytes
            expected = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
            assert torch.equal(again[name].reshape(-1).view(torch.uint8), expected), name


def test_the_same_tensors_make_the_same_file_in_any_order(tmp_path):
    tensors = awkward_tensors()
    first = files.write_tensors(tmp_path / "a", tensors)
    assert files.write_tensors(tmp_path / "b", dict(reversed(tensors.items()))) == first
    assert files.tensor_bytes(tensors) < first.bytes


@pytest.mark.parametrize("tensor", [torch.zeros(2, dtype=torch.complex64), torch.eye(2).to_sparse()])
def test_write_tensors_refuses_what_the_format_cannot_hold(tmp_path, tensor):
    with pytest.raises(ValueError, match="'odd'"):
        files.write_tensors(tmp_path / "a", {"odd": tensor})


def test_a_safetensors_file_that_begins_like_a_pickle_is_read(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"w": torch.ones(2)}, path)
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + length].ljust(0x280)
    path.write_bytes((0x280).to_bytes(8, "little") + header + content[8 + length :])
    assert path.read_bytes()[:2] == pickle.PROTO + b"\x02"
    assert torch.equal(files.read_tensors(path)["w"], torch.ones(2))


def hostile_headers():
    def file(header: dict, data: bytes = b"\0" * 8) -> bytes:
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + data

    yield b""
    yield b"\xff" * 8
    yield (1 << 62).to_bytes(8, "little") + b"{}"
    yield file({"w": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}})
    yield file({"w": {"dtype": "F32", "shape": [1 << 62, 4], "data_offsets": [0, 8]}})
    yield file({"w": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}})
    yield file({"w": {"dtype": "F99", "shape": [2], "data_offsets": [0, 8]}})
    yield file({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, b"\0" * 9)


@pytest.mark.parametrize("content", list(hostile_headers()))
def test_read_tensors_refuses_hostile_headers(tmp_path, content):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelError, match="not a readable safetensors file") as caught:
        files.read_tensors(path)
    assert caught.value.code == Exit.MODEL


def test_chunks_of_reads_more_than_one_chunk(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "CHUNK", 4)
    Path(tmp_path / "a").write_bytes(b"0123456789")
    assert list(files.chunks_of(tmp_path / "a")) == [b"0123", b"4567", b"89"]
