"""What a layer must leave alone beside its output: torch's switches, the warning filters, the sources of randomness."""

from __future__ import annotations

import random
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from flexvae_cli.api.checks import Case


def switches() -> dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]]:
    """The global switches of torch that a layer might move: how to read and how to set each."""
    import torch

    return {
        "default dtype": (torch.get_default_dtype, torch.set_default_dtype),
        "default device": (torch.get_default_device, torch.set_default_device),
        "number of threads": (torch.get_num_threads, torch.set_num_threads),
        "gradient mode": (torch.is_grad_enabled, torch.set_grad_enabled),
        "deterministic mode": (torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms),
    }


def global_state(case: Case) -> Iterator[str]:
    """What training a layer moves that is not its own."""
    x, filters = case.sample(), list(warnings.filters)
    before = {name: read() for name, (read, _) in switches().items()}
    case.module().train()(x)
    for name, (read, _) in switches().items():
        if read() != before[name]:
            yield f"it changes torch's {name} from {before[name]} to {read()}"
    if list(warnings.filters) != filters:
        yield "it changes the warning filters"


class Source(NamedTuple):
    """A global generator: its state as bytes, and how to seed it."""

    state: Callable[[], bytes]
    seed: Callable[[int], Any]


def sources() -> dict[str, Source]:
    """The global generators that training seeds in every step: torch's, Python's, and numpy's where it is loaded."""
    import torch

    found = {
        "torch": Source(lambda: torch.get_rng_state().numpy().tobytes(), torch.default_generator.manual_seed),
        "Python": Source(lambda: repr(random.getstate()).encode(), random.seed),
    }
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        found["numpy"] = Source(lambda: repr(numpy.random.get_state(legacy=True)[1:]).encode(), numpy.random.seed)
    return found


def seeding(case: Case) -> Iterator[str]:
    """A generator that is in one state behind a layer, whatever its state was before, was seeded by it."""
    x, behind = case.sample(), []
    with other_sources_restored():
        for seed in (1, 2):
            for source in sources().values():
                source.seed(seed)
            case.module().train()(x)
            behind.append({name: source.state() for name, source in sources().items()})
    for name, state in behind[0].items():
        if state == behind[1].get(name):
            yield f"it seeds {name}'s random numbers, which then are the same in every step"


@contextmanager
def other_sources_restored() -> Iterator[None]:
    """Python's and numpy's generators are in the end as they were."""
    numpy = sys.modules.get("numpy")
    python, array = random.getstate(), numpy.random.get_state() if numpy else None
    try:
        yield
    finally:
        random.setstate(python)
        if numpy is not None:
            numpy.random.set_state(array)
