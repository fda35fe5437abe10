"""Strict reading."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexvae_cli.engine import files, reading, tensorfiles
from flexvae_cli.errors import ModelError

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.text(), json_values, max_size=4))
def test_json_round_trip_and_seal(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("json") / "a.json"
    files.write_new(path, [reading.json_bytes(value)])
    again = reading.read_json(path)
    assert again == value
    assert reading.seal_of(again) == reading.seal_of(dict(reversed(value.items())))


def test_seal_sees_through_tuples_and_number_keys_only():
    assert reading.seal_of({"a": (1, 2), "b": {10: 1, 9: 2}}) == reading.seal_of({"b": {"9": 2, "10": 1}, "a": [1, 2]})
    assert reading.seal_of({"a": 1}) != reading.seal_of({"a": 1.5})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "is not JSON"),
        (b"{", "is not JSON"),
        (b"[]", "not a JSON object"),
        (b"3", "not a JSON object"),
        (b'{"a": 1, "b": {"a": 1, "a": 2}}', "gives the key 'a' twice"),
        (b'{"a": NaN}', "holds NaN, which is no number in JSON"),
        (b'{"a": -Infinity}', "no number in JSON"),
        (b'{"a": 1e999}', "holds 1e999, which is too large a number"),
        (b'{"a": ' + b"9" * 5000 + b"}", "number that is too long"),
        (b'{"a": "\xff"}', "not UTF-8"),
        ('{"a": 1}'.encode("utf-16"), "is UTF-16"),
        (b'{"a": "\x00"}', "control character"),
        (b'{"a": ' + b"[" * 65 + b"]" * 65 + b"}", "64 levels"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "deep|recursion"),
        (b'{"a": 1}' + b" " * 1000, "the most is 1,000"),
    ],
)
def test_read_json_refuses(tmp_path, text, reason):
    path = tmp_path / "a.json"
    path.write_bytes(text)
    with pytest.raises(ModelError, match=reason) as caught:
        reading.read_json(path, limit=1000 if b" " * 1000 in text else reading.JSON_BYTES)
    assert caught.value.problems[0].where == str(path)


def test_read_json_takes_64_lists_in_an_object(tmp_path):
    (tmp_path / "a").write_bytes(b'{"a": ' + b"[" * 64 + b"]" * 64 + b"}")
    assert reading.read_json(tmp_path / "a")


def test_reading_a_pipe_a_directory_or_nothing_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name, reason in {"pipe": "not a regular file", ".": "not a regular file", "none": "is missing"}.items():
        for read in (reading.read_json, tensorfiles.read_tensors):
            with pytest.raises(ModelError, match=reason):
                read(tmp_path / name)


def test_chunks_of_reads_more_than_one_chunk(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "CHUNK", 4)
    Path(tmp_path / "a").write_bytes(b"0123456789")
    assert list(reading.chunks_of(tmp_path / "a")) == [b"0123", b"4567", b"89"]
