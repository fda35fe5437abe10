"""How torch's allocator for CUDA is set up in the environment."""

from __future__ import annotations

import re
from collections.abc import Mapping, MutableMapping
from typing import Any

from flexvae_cli.errors import Problem, UsageError, listed

VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")  # the first wins where both are set
EXPANDABLE, SPLIT = "expandable_segments", "max_split_size_mb"
LEAST_SPLIT = 20  # MiB; torch takes no less
BETWEEN = re.compile(r",(?![^\[]*\])")  # options; a comma in brackets stands between the parts of a value
WAY_OUT = "or say --allocator default or expandable"


def prefer_expandable(environment: MutableMapping[str, str]) -> bool:
    """Let segments grow, where the environment leaves all of it open; returns whether that was done.

    torch reads the variables when it first takes memory of a GPU.

    Raises:
        UsageError: the environment has options that leak together.
    """
    if not any(environment.get(name) for name in VARIABLES):
        environment[VARIABLES[0]] = f"{EXPANDABLE}:True"
        return True
    name, given = _given(environment)
    if SPLIT in given and given.get(EXPANDABLE) == "True":
        raise UsageError(_leak(name))
    return False


def settings_of_training(environment: Mapping[str, str], *, keep: bool) -> dict[str, Any]:
    """The fields `allocator`, `split` and `notes` of a question, as training in this environment has them.

    What is not replayed is noted: the GPU need not be here, so neither need its environment.

    Args:
        environment: of the process.
        keep: whether freed memory is kept, see `device.keep_freed_memory`.

    Raises:
        UsageError: an option has no such value, or leaks beside another one.
    """
    there = dict(environment)
    if keep and there.get("FLEXVAE_ALLOCATOR") != "system":
        prefer_expandable(there)
    name, given = _given(there)
    left_out = _not_replayed(given)
    notes = (f"of {name} {listed(left_out, last='and')} is not replayed",) if left_out else ()
    return {**_fields(name, given, []), "notes": notes}


def _given(environment: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """The variable that holds, and its options."""
    name = next((name for name in VARIABLES if environment.get(name)), VARIABLES[0])
    options = BETWEEN.split(environment.get(name, ""))
    parts = (option.partition(":") for option in options if option.strip())
    return name, {key.strip(): value.strip() for key, _, value in parts}


def _leak(name: str) -> Problem:
    what = f"{SPLIT} and {EXPANDABLE} together leak what they reserve"
    there = "FLEXVAE_ALLOCATOR=system trains with both all the same, mem --allocator default predicts without"
    return Problem(what, name, hint=f"leave {SPLIT} out: {EXPANDABLE} does what it is for; {there}")


def _not_replayed(given: Mapping[str, str]) -> list[str]:
    return [key for key in given if key not in (EXPANDABLE, SPLIT)]


def allocator_settings(environment: Mapping[str, str]) -> dict[str, Any]:
    """The fields `allocator` and `split` of a question.

    Raises:
        UsageError: an option has no such value, is not replayed, or leaks beside another one.
    """
    name, given = _given(environment)
    hint = f"predictions know {listed([EXPANDABLE, SPLIT])}; {WAY_OUT}"
    return _fields(name, given, [Problem(f"'{key}' is not replayed", name, hint=hint) for key in _not_replayed(given)])


def _fields(name: str, given: Mapping[str, str], problems: list[Problem]) -> dict[str, Any]:
    expandable, split = given.get(EXPANDABLE, "False"), given.get(SPLIT)
    if expandable not in ("True", "False"):
        problems.append(Problem(f"{EXPANDABLE} wants True or False, not '{expandable}'", name, hint=WAY_OUT))
    if split is not None and (not re.fullmatch("[0-9]{1,9}", split, re.ASCII) or int(split) <= LEAST_SPLIT):
        what = f"{SPLIT} wants MiB, more than {LEAST_SPLIT}, not '{split}'"
        problems.append(Problem(what, name, hint=WAY_OUT))
    if split is not None and expandable == "True":
        problems.append(_leak(name))
    if problems:
        raise UsageError(*problems)
    return {
        "allocator": "expandable" if expandable == "True" else "default",
        "split": None if split is None else int(split) * 2**20,
    }
