"""The commands that a page shows with what they print: run again, and compared or pasted.

    python tests/pages.py docs/mem.md     # runs them and writes anew what they print

A command is an indented line that begins with `$ flexvae`; behind it stands what it prints, indented as well, and `...`
for what is left out in front.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from flexvae_cli.engine.memory.allocator_settings import VARIABLES

ROOT = Path(__file__).parents[1]
SHOWN = re.compile(r"^    \$ (flexvae .*)\n((?:(?:    .*)?\n)*)", re.M)
LEFT_OUT = "..."


class Block(NamedTuple):
    """A command, and the lines behind it on the page."""

    command: str
    lines: list[str]


def blocks(text: str) -> list[Block]:
    """The commands on a page."""
    return [Block(command, [line[4:] for line in shown.rstrip().split("\n")]) for command, shown in SHOWN.findall(text)]


def printed(command: str) -> list[str]:
    """What a command prints to a screen that is wide enough, whatever the environment says of FlexVAE and torch."""
    words = [sys.executable, "-m", "flexvae_cli", *shlex.split(command)[1:]]
    known = {k: v for k, v in os.environ.items() if k not in VARIABLES and not k.startswith("FLEXVAE_")}
    done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=ROOT, env={**known, "COLUMNS": "120"})
    return [line.rstrip() for line in done.stdout.rstrip().split("\n")]


def part(block: Block, lines: list[str]) -> list[str]:
    """The lines that belong on the page: from the one on that stands there behind `...`, where something is left out.

    Raises:
        LookupError: no line is of that shape.
    """
    if block.lines[0] != LEFT_OUT:
        return lines
    wanted = shape(block.lines[1])
    at = next((number for number, line in enumerate(lines) if shape(line) == wanted), None)
    if at is None:
        raise LookupError(f"nothing like '{block.lines[1]}' in what `{block.command}` prints")
    return [LEFT_OUT, *lines[at:]]


def shape(line: str) -> str:
    """A line without its numbers, the width of its columns, and how sure a prediction is of itself."""
    line = re.sub(r"grade \w, margin .*", "grade", line)
    line = re.sub(r"\d[\d.,]*", "#", line)
    return re.sub(r"─+", "─", " ".join(line.split()))


def written_anew(text: str) -> str:
    """A page with what its commands print now."""
    for block in blocks(text):
        old, new = (
            "\n".join(f"    {line}".rstrip() for line in [f"$ {block.command}", *lines])
            for lines in (block.lines, part(block, printed(block.command)))
        )
        text = text.replace(old, new)
    return text


if __name__ == "__main__":
    for name in sys.argv[1:]:
        page = Path(name)
        page.write_text(written_anew(page.read_text()))
