"""How torch's allocator for CUDA is set up in the environment."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from flexvae_cli.errors import Problem, UsageError, listed

VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")  # the first wins where both are set
EXPANDABLE, SPLIT = "expandable_segments", "max_split_size_mb"
LEAST_SPLIT = 20  # MiB; torch takes no less


def allocator_settings(environment: Mapping[str, str]) -> dict[str, Any]:
    """The fields `allocator` and `split` of a question.

    Raises:
        UsageError: an option has no such value, is not replayed, or leaks beside another one.
    """
    name = next((name for name in VARIABLES if environment.get(name)), VARIABLES[0])
    given = dict[str, str]()
    problems: list[Problem] = []
    for part in filter(None, (part.strip() for part in environment.get(name, "").split(","))):
        key, _, value = (text.strip() for text in part.partition(":"))
        given[key] = value
        if key not in (EXPANDABLE, SPLIT):
            known = listed([EXPANDABLE, SPLIT])
            problems.append(Problem(f"'{key}' is not replayed", name, hint=f"predictions know {known}"))
    expandable = given.get(EXPANDABLE, "False")
    split = given.get(SPLIT)
    if expandable.lower() not in ("true", "false"):
        problems.append(Problem(f"{EXPANDABLE} wants True or False, not '{expandable}'", name))
    if split is not None and (not re.fullmatch("[0-9]{1,9}", split, re.ASCII) or int(split) <= LEAST_SPLIT):
        problems.append(Problem(f"{SPLIT} wants MiB, more than {LEAST_SPLIT}, not '{split}'", name))
    if split is not None and expandable.lower() == "true":
        what = f"{SPLIT} and {EXPANDABLE} together leak what they reserve"
        problems.append(Problem(what, name, hint=f"leave {SPLIT} out: {EXPANDABLE} does what it is for"))
    if problems:
        raise UsageError(*problems)
    return {
        "allocator": "expandable" if expandable.lower() == "true" else "default",
        "split": None if split is None else int(split) * 2**20,
    }
