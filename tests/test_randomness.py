from __future__ import annotations

import random

import numpy as np
import torch

from flexvae_cli.engine.randomness import generator, seed_everything, seed_of


def test_a_seed_is_the_same_everywhere_and_for_ever() -> None:
    assert seed_of() == 8238016292129134938
    assert seed_of(0, "order", 3) == 6613409532709774436


def test_the_parts_of_a_seed_cannot_be_confused() -> None:
    parts: list[tuple[int | str, ...]] = [
        (), ("",), ("", ""), (1,), ("1",), (-1,), (1, 2), (12,), ("1", "2"), ("12",), ("ab", "c"), ("a", "bc"),
        ("i1:1",), (1, "i1:1"), ("s1:a",), ("a", "s1:a"), ("\udcff",), ("ÿ",),
    ]  # fmt: skip
    seeds = [seed_of(*p) for p in parts]
    assert len(set(seeds)) == len(parts)
    assert all(0 <= s < 2**63 for s in seeds)


def test_generators_repeat_and_leave_the_global_one_alone() -> None:
    before = torch.get_rng_state()
    first, second = (torch.rand(4, generator=generator(5, "x")) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, torch.rand(4, generator=generator(5, "y")))
    assert torch.equal(before, torch.get_rng_state())


def test_seed_everything_covers_the_global_generators() -> None:
    def drawn(seed: int, step: int, k: int) -> tuple[float, ...]:
        seed_everything(seed, step, k)
        return torch.rand(()).item(), float(np.random.rand()), random.random()

    first = drawn(0, 10, 1)
    assert drawn(0, 10, 1) == first
    for other in (drawn(1, 10, 1), drawn(0, 11, 1), drawn(0, 10, 0)):
        assert all(a != b for a, b in zip(first, other, strict=True))
