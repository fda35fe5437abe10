from __future__ import annotations

import pytest
import tomli
from hypothesis import given, settings
from hypothesis import strategies as st

from flexvae_cli.config.locate import key_lines, line_of
from flexvae_cli.config.toml_writer import to_toml

TEXT = '''\
# a = 1, [x]
top = "[table]"   # [comment]

[model]  # one
encoder = "a.json"
bottleneck = """
[data]
source = 3
"""
decoder = \'\'\'
[train]\'\'\'
"quoted key" = 1
'lit.eral' = 2
"tab\\there" = 3

[ data . "a.b" ]
inner.leaf = 4
list = [
  "]", # ]
  [1, 2],
]
after = { x = 1, y = [ { z = 2 } ] }

[[loss.term]]
name = "one"
[[loss.term]]
name = "two"
[loss.term.options]
depth = 3
[[loss.term.options.deep]]
x = 1
[loss]
alpha = 1
'''


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("top",), 2),
        (("model",), 4),
        (("model", "encoder"), 5),
        (("model", "bottleneck"), 6),
        (("model", "decoder"), 10),
        (("model", "quoted key"), 12),
        (("model", "lit.eral"), 13),
        (("model", "tab\there"), 14),
        (("data",), 16),
        (("data", "a.b"), 16),
        (("data", "a.b", "inner"), 17),
        (("data", "a.b", "inner", "leaf"), 17),
        (("data", "a.b", "list"), 18),
        (("data", "a.b", "list", 1, 0), 18),
        (("data", "a.b", "after", "y", 0, "z"), 22),
        (("loss", "term"), 24),
        (("loss", "term", 0), 24),
        (("loss", "term", 0, "name"), 25),
        (("loss", "term", 1), 26),
        (("loss", "term", 1, "name"), 27),
        (("loss", "term", 1, "options", "depth"), 29),
        (("loss", "term", 1, "options", "deep", 0, "x"), 31),
        (("loss",), 32),
        (("loss", "alpha"), 33),
        (("model", "not there"), 4),
        (("train",), None),
        (("source",), None),
    ],
)
def test_line_of(path: tuple[str | int, ...], line: int | None) -> None:
    tomli.loads(TEXT)
    assert line_of(key_lines(TEXT), path) == line


def test_the_text_may_end_within_a_line() -> None:
    assert key_lines("a = 1\nb = 2") == {("a",): 1, ("b",): 2}
    assert key_lines("") == {}


LEAVES = st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text()
VALUES = st.recursive(
    LEAVES, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(), v, max_size=3), max_leaves=8
)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.text(), VALUES, max_size=4))
def test_every_key_of_a_written_document_has_the_line_that_it_stands_on(document: dict[str, object]) -> None:
    text = to_toml(document)
    assert tomli.loads(text) == document
    lines, rows = key_lines(text), text.split("\n")
    for key, value in document.items():
        row = rows[lines[(key,)] - 1]
        assert row.startswith("[") == isinstance(value, dict)
        assert next(iter(tomli.loads(row))) == key
