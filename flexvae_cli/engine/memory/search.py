"""The largest batch that fits: aim by the trials so far, try for real, and close in from both sides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from flexvae_cli.engine.memory.child import Trial

MOST = 65_536  # samples; no larger batch is tried
PRECISION = 64  # large batches are told to a 64th


@dataclass(frozen=True, slots=True)
class Found:
    """What a search found.

    Attributes:
        largest: the largest batch that was tried and fits; 0 where not even one sample does.
        beyond: the trial of the smallest batch known not to fit: `largest + 1`, or for large batches up to a 64th more;
            None where the search came to `MOST`.
        trials: all trials, in the order in which they were made.
    """

    largest: int
    beyond: Trial | None
    trials: tuple[Trial, ...]


def largest_batch(
    run: Callable[[int], Trial], first: Trial, memory: int, most: int = MOST, known: Sequence[Trial] = ()
) -> Found:
    """Search from 1 to `most` samples; where a batch does not fit, no larger one is tried.

    What a step needs is close to affine in the batch: the third trial is mostly at the border, the fourth shows it.

    Args:
        run: makes a trial that is limited to `memory`.
        first: a trial that was not; if it is done but too large for `memory`, it is aimed by, no more.
        memory: bytes to fill.
        most: where to stop.
        known: trials that `run` has made already, the best aim last.
    """
    trials = [first, *known]
    failed = [trial for trial in known if not trial.fits(memory)] + ([first] if first.outcome != "done" else [])
    beyond = min(failed, key=lambda trial: trial.batch, default=None)
    high = beyond.batch if beyond else most + 1
    low = max((trial.batch for trial in trials if trial.fits(memory) and trial.batch < high), default=0)
    while high - low > max(1, high // PRECISION):
        trial = run(_next_batch(trials, low, high, memory, most))
        trials.append(trial)
        if trial.fits(memory):
            low = trial.batch
        else:
            high, beyond = trial.batch, trial
    return Found(low, beyond, tuple(trials))


def _next_batch(trials: Sequence[Trial], low: int, high: int, memory: int, most: int) -> int:
    """A batch between `low` and `high`: where the trials aim, a stride beside the last one, or the middle.

    Strides double with every trial, so that a bad aim costs a few trials, not many.
    """
    last, aim = trials[-1].batch, _aim(trials, memory)
    stride = max(1, last // PRECISION) << max(0, len(trials) - 3)
    if high > most:
        return min(most, max(aim or 2 * low, low + stride))
    if aim is not None:
        batch = max(aim, low + stride) if last == low else min(aim, high - stride)
        if low < batch < high:
            return batch
    return (low + high) // 2


def _aim(trials: Sequence[Trial], memory: int) -> int | None:
    """Where the line through the two largest trials reaches `memory`; None where there is no rising line."""
    done = sorted({(trial.batch, trial.peak) for trial in trials if trial.outcome == "done"})
    if len(done) < 2:
        return None
    (batch, peak), (larger, higher) = done[-2:]
    slope = (higher - peak) / (larger - batch)
    return int(larger + (memory - higher) / slope) if slope > 0 else None
