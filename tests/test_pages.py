"""What docs/mem.md shows is what its commands print, up to the numbers; all of them in `make nightly`."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from pages import LEFT_OUT, Block, blocks, part, printed, shape

SHOWN = blocks((Path(__file__).parents[1] / "docs/mem.md").read_text())
NIGHTLY = os.environ.get("FLEXVAE_NIGHTLY") == "1"


@pytest.mark.parametrize("block", SHOWN if NIGHTLY else SHOWN[:1], ids=lambda block: block.command)
def test_what_a_page_shows_is_what_is_printed(block: Block) -> None:
    now = part(block, printed(block.command))
    assert [shape(line) for line in now] == [shape(line) for line in block.lines]


def test_what_a_page_shows_does_not_depend_on_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, str] = {}

    def run(*_: object, env: dict[str, str], **__: object) -> subprocess.CompletedProcess[str]:
        given.update(env)
        return subprocess.CompletedProcess([], 0, "a line\n")

    monkeypatch.setattr(subprocess, "run", run)
    theirs = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "FLEXVAE_ALLOCATOR", "FLEXVAE_FUSE")
    for name in theirs:
        monkeypatch.setenv(name, "system")
    monkeypatch.setenv("OTHER", "1")
    assert printed("flexvae mem") == ["a line"]
    assert not given.keys() & set(theirs)
    assert (given["OTHER"], given["COLUMNS"]) == ("1", "120")


def test_commands_are_found_with_what_stands_behind_them() -> None:
    text = "words\n\n    $ flexvae mem --x 1\n    a  1.5\n\n    b\n\nmore\n\n    $ flexvae other\n    ...\n    c 7\n"
    assert blocks(text) == [Block("flexvae mem --x 1", ["a  1.5", "", "b"]), Block("flexvae other", [LEFT_OUT, "c 7"])]
    assert len(SHOWN) == 3


def test_what_is_left_out_is_left_out_again() -> None:
    block = Block("flexvae mem", [LEFT_OUT, "largest batch: 20"])
    assert part(block, ["a table", "largest batch: 1,021", "more"]) == [LEFT_OUT, "largest batch: 1,021", "more"]
    with pytest.raises(LookupError, match="nothing like 'largest batch: 20'"):
        part(block, ["something else"])


def test_another_word_is_another_shape() -> None:
    assert shape("parameters   158.0  1.4%") == shape("parameters  1,580.25     11.0%")
    assert shape("parameters 158.0") != shape("gradients 158.0")
