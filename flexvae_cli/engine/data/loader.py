"""Load batches ahead of the training step, in processes that read and decode."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader

from flexvae_cli.engine.data.dataset import (
    EvaluationImages,
    MicroBatch,
    TrainingImages,
    WholeImages,
    collate,
    micro_batch,
)
from flexvae_cli.engine.data.sampler import MicroBatches
from flexvae_cli.errors import DataError, FlexVAEError, ResourceError

TIMEOUT = 120  # seconds without a batch after which a worker counts as hung, or as dead where nothing else told so
SHORTAGES = ("Too many open files", "ancdata", "shared memory", "No space left")  # as torch words them

# Fork copies a process whose torch and CUDA threads hold locks that nobody in the copy will ever release: it may hang.
# A fork server is a clean process that imports torch once and forks the workers; without one, each is started anew.
START_METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"


def training_loader(
    dataset: TrainingImages, sampler: MicroBatches, *, workers: int, pin_memory: bool = False
) -> DataLoader[Any]:
    """The micro-batches of `sampler`, in its order whatever the number of workers; iterate with `batches`.

    Args:
        dataset: the images.
        sampler: which samples, in which order.
        workers: processes that read; 0 reads in this one.
        pin_memory: copy batches to page-locked memory, for faster transfer to a GPU.
    """
    return _loader(dataset, workers, batch_sampler=sampler, collate_fn=collate, pin_memory=pin_memory)


def evaluation_batches(dataset: EvaluationImages, batch_size: int) -> Iterator[MicroBatch]:
    """All images in order, in batches of at most `batch_size`, read in this process.

    Bad files are left out and reported with their batch; a batch of bad files alone has no samples.
    """
    for start in range(0, len(dataset), batch_size):
        yield micro_batch([dataset[index] for index in range(start, min(start + batch_size, len(dataset)))])


def whole_loader(dataset: WholeImages, *, workers: int) -> DataLoader[Any]:
    """The pairs of `dataset` one by one, in order."""
    return _loader(dataset, workers, batch_size=None, collate_fn=_as_it_is)


def batches(loader: DataLoader[Any]) -> Iterator[MicroBatch]:
    """What `loader` yields, with the errors of data workers put into words.

    Raises:
        DataError: a worker died or hangs, or no readable image is found.
        ResourceError: the workers lack shared memory or open files.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that more workers than cores were asked for
            iterator = iter(loader)
    except OSError as error:
        raise ResourceError(f"cannot start data workers: {error.strerror}", hint="try data.workers = 0") from error
    while True:
        try:
            batch = next(iterator)
        except StopIteration:
            return
        except (OSError, EOFError, RuntimeError) as error:
            if loader.num_workers == 0:
                raise
            raise _in_words(error) from error
        if isinstance(batch, FlexVAEError):
            raise batch
        yield batch


def _in_words(error: Exception) -> Exception:
    """What happened to the workers; `error` itself where it was raised by code that ran in one of them."""
    text = str(error)
    if any(shortage in text for shortage in SHORTAGES):
        return ResourceError(
            "the data workers lack shared memory or open files",
            hint="try fewer data.workers, or 0; enlarge /dev/shm; raise the limit of `ulimit -n`",
        )
    if text.startswith("DataLoader timed out"):
        hint = "is the disk or the network slow? try data.workers = 0"
        return DataError(f"the data workers gave no batch for {TIMEOUT} s", hint=hint)
    if "in DataLoader worker process" in text or (isinstance(error, RuntimeError) and "unexpectedly" not in text):
        return error
    pids = re.search(r"pid\(s\) ([0-9, ]+)", text)
    return DataError(
        f"a data worker died (process {pids[1]})" if pids else "a data worker died",
        hint="it may have run out of memory; try data.workers = 0, or fewer",
    )


def _loader(dataset: Any, workers: int, **options: Any) -> DataLoader[Any]:
    if workers:
        options |= {"multiprocessing_context": START_METHOD, "timeout": TIMEOUT, "worker_init_fn": settle_worker}
        if START_METHOD == "forkserver":
            multiprocessing.get_context("forkserver").set_forkserver_preload(["flexvae_cli.engine.data.server"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that more workers than cores were asked for
        # a generator of its own, so that making an iterator draws nothing from the global one
        return DataLoader(dataset, num_workers=workers, generator=torch.Generator(), **options)


def settle_worker(worker: int) -> None:  # noqa: ARG001
    """Make this data worker live and die with the process that reads from it.

    Ctrl-C and the SIGTERM of a batch system reach the whole process group; the training process then saves a
    checkpoint and ends its workers itself, so they let the first one pass. A second SIGTERM does end a worker: it is
    how a hung one is removed. Where the training process is killed, its workers leave at once.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _spare_once)
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _spare_once(signum: int, frame: object) -> None:  # noqa: ARG001
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()  # the reader; the parent that the system knows is the fork server
    if parent is not None:
        parent.join()
        os._exit(1)


def _as_it_is(sample: Any) -> Any:
    return sample
