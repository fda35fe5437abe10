"""Load batches ahead of the training step, in processes that read and decode, and go on when one of them dies."""

from __future__ import annotations

import multiprocessing
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from flexvae_cli.engine.data.dataset import (
    EvaluationImages,
    MicroBatch,
    TrainingImages,
    collate,
    micro_batch,
)
from flexvae_cli.engine.data.sampler import MicroBatches
from flexvae_cli.engine.data.whole import WholeFiles, WholeImages
from flexvae_cli.engine.data.workers import (
    POLL,
    Crew,
    Notes,
    ShortageError,
    WorkersLostError,
    settle_worker,
    shared_memory,
    spared_by_signals,
    worker_context,
)
from flexvae_cli.errors import FlexVAEError

TIMEOUT = 120.0  # seconds without a batch after which the workers count as hung
STARTING = 60.0  # seconds that workers may take to begin: they import torch
ROOMY = 64  # images that shared memory must have room for
_abandoned: list[Any] = []


def nothing(*_: object) -> None:
    """Nobody wants to know."""


def training_batches(
    dataset: TrainingImages,
    sampler: MicroBatches,
    *,
    workers: int,
    pin_memory: bool = False,
    timeout: float = TIMEOUT,
    check: Callable[[], object] = nothing,
    tell: Callable[[str], object] = nothing,
) -> Iterator[MicroBatch]:
    """The micro-batches of `sampler`, in its order whatever the number of workers and whatever becomes of them.

    Where a worker dies or hangs all of them are started anew, once, behind the batches that were delivered.

    Args:
        dataset: the images.
        sampler: which samples, in which order.
        workers: processes that read; 0 reads in this one.
        pin_memory: copy batches to page-locked memory, for faster transfer to a GPU.
        timeout: seconds without a batch after which the workers count as hung.
        check: called while there is nothing to deliver; what it raises ends the wait, hung workers or not.
        tell: is told, in a line, why workers were started anew.

    Raises:
        DataError: workers died or hang for the second time, or no readable image is found.
        ShortageError: the workers lack shared memory or open files.
    """

    def make(done: int) -> DataLoader[Any]:
        rest = Rest(sampler, done)
        together = _shared_batch if workers else collate
        return _loader(dataset, workers, batch_sampler=rest, collate_fn=together, pin_memory=pin_memory)

    return _unbroken(make, timeout, check, tell)


@dataclass(frozen=True)
class Rest:
    """A batch sampler: what another one yields after its first `done` micro-batches."""

    sampler: MicroBatches
    done: int

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        step, behind = self.sampler.start_step, self.done
        while step < self.sampler.max_steps and behind >= (parts := len(self.sampler.step_sizes(step))):
            step, behind = step + 1, behind - parts
        return islice(replace(self.sampler, start_step=step), behind, None)


def evaluation_batches(
    dataset: EvaluationImages, batch_size: int, rank: int = 0, world: int = 1
) -> Iterator[MicroBatch]:
    """All images in order, in batches of at most `batch_size`, read in this process.

    Of several processes each gets every `world`-th batch, from number `rank` on. Bad files are left out and reported
    with their batch; a batch of bad files alone has no samples.
    """
    for start in range(rank * batch_size, len(dataset), world * batch_size):
        yield micro_batch([dataset[index] for index in range(start, min(start + batch_size, len(dataset)))])


def whole_images(
    dataset: WholeImages | WholeFiles,
    *,
    workers: int,
    ahead: int = 4,
    timeout: float = TIMEOUT,
    check: Callable[[], object] = nothing,
    tell: Callable[[str], object] = nothing,
) -> Iterator[Any]:
    """The pairs of `dataset` one by one, in order; `ahead` of them are read in advance, for the rest see
    `training_batches`."""

    def make(done: int) -> DataLoader[Any]:
        rest: Sequence[int] = range(done, len(dataset))
        options = {"prefetch_factor": max(1, -(-ahead // workers))} if workers else {}
        together = _shared_pixels if workers else _as_it_is
        return _loader(dataset, workers, batch_size=None, sampler=rest, collate_fn=together, **options)

    for item, pixels in _unbroken(make, timeout, check, tell):
        yield item, pixels.numpy() if isinstance(pixels, torch.Tensor) else pixels


def _unbroken(
    make: Callable[[int], DataLoader[Any]],
    timeout: float,
    check: Callable[[], object],
    tell: Callable[[str], object],
) -> Iterator[Any]:
    """What `make(0)` loads; where its workers are lost, what `make(n)` loads behind the first n, once."""
    delivered = 0
    try:
        for batch in _batches(make(0), timeout, check):
            delivered += 1
            yield batch
        return
    except WorkersLostError as lost:
        tell(f"{lost.problems[0].what}; all were started anew, nothing is lost")
    yield from _batches(make(delivered), timeout, check)


def _batches(loader: DataLoader[Any], timeout: float, check: Callable[[], object]) -> Iterator[Any]:
    """What `loader` yields, with what befalls its workers put into words."""
    if not loader.num_workers:
        for batch in loader:
            yield _sound(batch)
        return
    iterator, crew = _started(loader)
    try:
        while True:
            try:
                batch = _next(iterator, crew, timeout, check)
            except StopIteration:
                return
            except BaseException:
                crew.kill()
                _abandoned.append(iterator)  # to shut it down, torch would wait for locks that the dead took with them
                raise
            yield _sound(batch)
    finally:
        del iterator  # torch lets the workers finish what they read
        crew.kill()  # and those that hang go too, else Python would wait for them at its end


def _started(loader: DataLoader[Any]) -> tuple[Iterator[Any], Crew]:
    """The iterator of a loader, and its workers."""
    others = multiprocessing.active_children()
    try:
        with warnings.catch_warnings(), spared_by_signals():
            warnings.simplefilter("ignore")  # that more workers than cores were asked for
            iterator = iter(loader)
    except OSError as error:
        _forget(error)
        raise ShortageError(f"cannot start data workers: {error.strerror}", hint="try data.workers = 0") from error
    processes = [process for process in multiprocessing.active_children() if process not in others]
    assert isinstance(loader.dataset, Notes)
    return iterator, Crew(sorted(processes, key=_number), loader.dataset)


def _forget(error: Exception) -> None:
    """Let go of what was begun when an error came up: torch's iterator cannot be half made without complaint."""
    hook, sys.unraisablehook = sys.unraisablehook, nothing
    try:
        traceback.clear_frames(error.__traceback__)
    finally:
        sys.unraisablehook = hook


def _next(iterator: Iterator[Any], crew: Crew, patience: float, check: Callable[[], object]) -> Any:
    """The next batch, waited for in short turns, which torch allows: a wait that ended leaves nothing changed."""
    called = began = time.monotonic()
    while True:
        if not crew.notes.begun() and time.monotonic() - called < STARTING:
            began = time.monotonic()
        lost: Exception | None = None
        try:
            with crew.until(began + patience + POLL):
                return next(iterator)
        except (OSError, EOFError, RuntimeError) as error:
            if not str(error).startswith("DataLoader timed out"):
                lost = error
        check()
        if time.monotonic() - began > patience:
            what = f"the data workers gave no batch for {patience:.0f} s{crew.reading()}"
            hint = "is the disk or the network slow? raise data.timeout, or try data.workers = 0"
            raise WorkersLostError(what, hint=hint)
        if lost is not None:
            raise crew.explained(lost) from lost


def _number(process: BaseProcess) -> tuple[int, str]:
    return len(process.name), process.name  # `ForkServerProcess-9` was started before `ForkServerProcess-10`


def _sound(batch: Any) -> Any:
    if isinstance(batch, FlexVAEError):
        raise batch
    return batch


def _loader(dataset: Any, workers: int, **options: Any) -> DataLoader[Any]:
    if workers:
        dataset = Notes(dataset, workers)
        options |= {"multiprocessing_context": worker_context(), "timeout": POLL, "worker_init_fn": settle_worker}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that more workers than cores were asked for
        # a generator of its own, so that making an iterator draws nothing from the global one
        return DataLoader(dataset, num_workers=workers, generator=torch.Generator(), **options)


def _shared_batch(samples: Sequence[Any]) -> Any:
    """`collate`, into shared memory: where the queue does that, a lack of it is a batch that never comes."""
    batch = collate(samples)
    if isinstance(batch, MicroBatch):
        batch.x.share_memory_()
        batch.places.share_memory_()
    return batch


def _shared_pixels(pair: tuple[Any, Any]) -> tuple[Any, Any]:
    """Pixels by way of shared memory, where there is plenty: faster than a pipe, in which half of them get stuck where
    their worker is killed."""
    item, pixels = pair
    if isinstance(pixels, np.ndarray) and ROOMY * pixels.nbytes < shared_memory():
        pixels = torch.from_numpy(pixels.copy())
    return item, pixels


def _as_it_is(sample: Any) -> Any:
    return sample
