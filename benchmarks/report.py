"""Writes one section of docs/benchmarks.md and leaves the others as they are."""

from __future__ import annotations

import os
import platform
import re
from datetime import date
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs/benchmarks.md"
HEAD = (
    "# Benchmarks\n\nEvery number here is written by a script in `benchmarks/`. `make bench-long` runs those that "
    "train models to the end,\nand `make bench` all others, in half an hour on two cores.\n"
)


def machine() -> str:
    """The machine and the versions, in one line."""
    import torch

    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.processor(),
    )
    return (
        f"{model}, {os.cpu_count()} cores; Python {platform.python_version()}, torch {torch.__version__}; "
        f"{date.today().isoformat()}"
    )


def write_section(name: str, body: str) -> None:
    """Put `body` under the heading `name`, in the place of what an earlier run wrote there."""
    page = PAGE.read_text() if PAGE.exists() else HEAD
    section = f"\n## {name}\n\n{machine()}\n\n{body.strip()}\n"
    found = re.search(rf"\n## {re.escape(name)}\n.*?(?=\n## |\Z)", page, re.S)
    page = page[: found.start()] + section + page[found.end() :] if found else page.rstrip() + "\n" + section
    PAGE.write_text(page)
    print(section)
