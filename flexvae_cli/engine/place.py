"""Which process of a run this is, as the launcher (torchrun, or a batch system) says in the environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from flexvae_cli.errors import Problem, UsageError


@dataclass(frozen=True, slots=True)
class Place:
    """The place of a process among those that train together; by default it is alone.

    Attributes:
        rank: its number among all of them, from 0.
        size: how many they are.
        local_rank: its number among those of this machine, from 0.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def alone(self) -> bool:
        return self.size == 1


def find_place(environment: Mapping[str, str]) -> Place:
    """Read torchrun's variables; without `WORLD_SIZE`, or with 1, a process is alone and the others do not matter.

    Raises:
        UsageError: some of them are missing, or say what cannot be.
    """
    if environment.get("WORLD_SIZE", "1") == "1":
        return Place()
    problems: list[Problem] = []
    numbers = [_number(environment, name, problems) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")]
    if not environment.get("MASTER_ADDR"):
        problems.append(Problem("is not set", "MASTER_ADDR"))
    place = Place(*numbers[:3])
    if not problems and not place.local_rank <= place.rank < place.size:
        problems.append(Problem(f"{place.rank} is not among the ranks of {place.size} processes", "RANK"))
    if problems:
        hint = "start several processes with: torchrun --nproc-per-node 4 -m flexvae_cli train ..."
        raise UsageError(*problems, Problem("WORLD_SIZE asks for several processes that train together", hint=hint))
    return place


def require_parts(batch_size: int, accumulate: int, place: Place) -> None:
    """Refuse a batch that has fewer samples than it is to be cut into micro-batches.

    Raises:
        UsageError: it has.
    """
    parts = accumulate * place.size
    if batch_size < parts:
        what = f"cannot cut a batch of {batch_size} into {parts} parts, {accumulate} for each process"
        raise UsageError(what, where="train.batch_size", hint=f"use at least {parts}, or fewer processes")


def _number(environment: Mapping[str, str], name: str, problems: list[Problem]) -> int:
    text = environment.get(name, "")
    if text.isascii() and text.isdigit() and len(text) < 10:
        return int(text)
    problems.append(Problem(f"wants a whole number, not '{text}'" if text else "is not set", name))
    return 0
