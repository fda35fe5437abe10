"""The whole answer of `flexvae mem`: what a batch needs, and the largest batch that fits."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from flexvae_cli.config import Config
from flexvae_cli.config.settings import Settings
from flexvae_cli.engine.memory.child import TIME_LIMIT, Request, Trial, run_trial
from flexvae_cli.engine.memory.closed import States, states_of
from flexvae_cli.engine.memory.search import Found, largest_batch
from flexvae_cli.errors import ResourceError

PATIENCE = 240.0  # seconds for a search; small nets have largest batches whose steps take minutes
LEAST_TIME = 20.0  # seconds that a trial of the search has at least


class Ask(Protocol):
    """Makes a trial at a batch; a limit of None is what the device has."""

    def __call__(self, size: int, limit: int | None, seconds: float = TIME_LIMIT) -> Trial: ...


@dataclass(frozen=True, slots=True)
class Answer:
    """What a training step needs. Batches are samples of a micro-batch.

    Attributes:
        measured: the trial at the batch that was asked for, limited by nothing but the device.
        states: bytes that do not depend on the batch.
        memory: bytes to fill.
        found: the search for the largest batch that fits into `memory`.
        one: the same as `measured` at batch 1, where not even that fits; else None.
    """

    measured: Trial
    states: States
    memory: int
    found: Found
    one: Trial | None

    @property
    def activations(self) -> int:
        """Bytes of tensors at the peak of the measured step beyond the states: activations, temporaries, samples."""
        return max(0, self.measured.tensors - self.states.total)

    @property
    def overhead(self) -> int:
        """Bytes that are no tensors: Python, torch and its buffers on a CPU; what its allocator rounds up on CUDA."""
        return max(0, self.measured.peak - self.measured.tensors)


def asker(config: Config, batch: int, before: Callable[[int], None]) -> Ask:
    """Makes trials of a config; at `batch` tensors are measured in detail.

    Args:
        before: called with its batch ahead of every trial.
    """

    def ask(size: int, limit: int | None, seconds: float = TIME_LIMIT) -> Trial:
        before(size)
        detailed = limit is None and size == batch
        return run_trial(Request(config.document, str(config.path), size, limit, detailed), seconds)

    return ask


def answer(config: Config, batch: int, parameters: int, ask: Ask) -> Answer:
    """Measure a batch, then search for the largest.

    Args:
        batch: samples of the micro-batch to measure.
        parameters: of the net, as its plan has them.
        ask: makes trials.

    Raises:
        ResourceError: the device has less memory than is to be filled, or not even a trial can start on it.
    """
    measured = ask(batch, None)
    memory = config.settings.mem.memory or measured.available
    if not measured.available:
        raise ResourceError(f"a trial at batch {batch} ended before it could measure anything ({measured.outcome})")
    if memory > measured.available:
        have = f"{measured.device} has {measured.available / 2**30:.2f} GiB available"
        raise ResourceError(f"{memory / 2**30:.2f} GiB cannot be tried: {have}", hint="give a smaller --memory")
    end = time.monotonic() + PATIENCE
    found = largest_batch(lambda size: ask(size, memory, max(LEAST_TIME, end - time.monotonic())), measured, memory)
    sizes = (measured.parameters or parameters, measured.parameter_tensors, measured.training)
    states = states_of(*sizes, adam=_only_adam(config.settings))
    one = None
    if not found.largest:
        one = measured if batch == 1 else ask(1, None)
    return Answer(measured, states, memory, found, one)


def _only_adam(settings: Settings) -> bool:
    """Whether training keeps nothing but the state of one Adam or AdamW."""
    return settings.optimizer.name in ("adam", "adamw") and not settings.ema.decay and settings.adversarial is None


def fits(answer: Answer, batch: int, ask: Ask) -> bool:
    """Whether a batch fits; where the search left it open, or ended for want of time, a trial tells.

    Raises:
        ResourceError: that trial takes too long as well.
    """
    found = answer.found
    if batch <= found.largest:
        return True
    if found.beyond is not None and batch >= found.beyond.batch and found.beyond.outcome != "time":
        return False
    trial = ask(batch, answer.memory)
    if trial.outcome == "time":
        what = f"whether batch {batch:,} fits is not known: it took longer than {TIME_LIMIT / 60:.0f} minutes to try"
        raise ResourceError(what, hint="--gpu NAME predicts for a GPU, without trying")
    return trial.fits(answer.memory)
