"""The processes that read samples: how they start, live and die, and what is said of a death."""

from __future__ import annotations

import atexit
import contextlib
import math
import multiprocessing
import os
import shutil
import signal
import tempfile
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import reduction
from multiprocessing.connection import wait
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset, get_worker_info

from flexvae_cli.engine.interrupt import STOPPING, WARNING
from flexvae_cli.errors import DataError, ResourceError

# Fork copies a process whose torch and CUDA threads hold locks that nobody in the copy will ever release: it may hang.
# A fork server is a clean process that imports torch once and forks the workers; without one, each is started anew.
START_METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where Linux keeps what processes share
SHORTAGES = ("Too many open files", "ancdata", "shared memory", "No space left")  # as torch words them
POLL = 1  # seconds between looks at workers that give nothing
WORD, IDLE, FIRST = 8, 1, 2  # a note: its bytes; it is 0 before a worker begins, 1 between samples, n + 2 in sample n
SETTLING = 2.0  # seconds until the system has told of a death that a broken connection gave away


class WorkersLostError(DataError):
    """Data workers died or hang; the batches that they had ahead can be read anew."""


class ShortageError(ResourceError):
    """Data workers cannot be started, or lack what they share with who reads from them."""


def worker_context() -> BaseContext:
    """How workers are started."""
    context = multiprocessing.get_context(START_METHOD)
    if START_METHOD == "forkserver":
        context.set_forkserver_preload(["flexvae_cli.engine.data.server"])
    return context


class Notes(Dataset[Any]):
    """A data set that leaves word of what each worker reads, in a file where a worker that is killed leaves it behind.

    Args:
        dataset: indexed by a number, or by (epoch, number); its `items` have names.
        workers: the number of workers.
    """

    def __init__(self, dataset: Any, workers: int) -> None:
        self.dataset = dataset
        self.workers = workers
        self.place: int | None = None
        with contextlib.suppress(OSError), tempfile.TemporaryFile() as file:  # it can be done without
            self.place = os.dup(file.fileno())
            weakref.finalize(self, os.close, self.place)

    def __getstate__(self) -> dict[str, Any]:
        place = reduction.DupFd(self.place) if self.place is not None and os.name == "posix" else None
        return {"dataset": self.dataset, "workers": self.workers, "place": place}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.dataset, self.workers = state["dataset"], state["workers"]
        self.place = state["place"] and state["place"].detach()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, at: Any) -> Any:
        self._note((at[-1] if isinstance(at, tuple) else at) + FIRST)
        sample = self.dataset[at]
        self._note(IDLE)
        return sample

    def begun(self) -> bool:
        """Whether a worker has come as far as reading something; never where there is no file for notes."""
        return any(self._numbers())

    def names(self) -> list[str]:
        """The files that are being read, by worker; empty where it reads none."""
        items = getattr(self.dataset, "items", ())
        places = [number - FIRST for number in self._numbers()]
        return [items[place].name if 0 <= place < len(items) else "" for place in places]

    def _numbers(self) -> list[int]:
        data = b"" if self.place is None else os.pread(self.place, self.workers * WORD, 0)
        return [int.from_bytes(data[n * WORD : (n + 1) * WORD], "little") for n in range(self.workers)]

    def _note(self, number: int) -> None:
        worker = get_worker_info()
        if worker is not None and self.place is not None:
            with contextlib.suppress(OSError):
                os.pwrite(self.place, number.to_bytes(WORD, "little"), worker.id * WORD)


class Crew:
    """The workers of one loader, in the order of their numbers."""

    def __init__(self, processes: Sequence[BaseProcess], notes: Notes) -> None:
        self.processes = processes
        self.notes = notes
        self._deadline = math.inf
        self._gone = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()
        atexit.register(self.kill)  # before Python waits for processes that let the first SIGTERM pass

    @contextmanager
    def until(self, deadline: float) -> Iterator[None]:
        """What goes on inside asks a worker for something; one that has not answered by then is ended.

        Without it, asking a worker that was stopped as a whole would take forever.
        """
        self._deadline = deadline
        try:
            yield
        finally:
            self._deadline = math.inf

    def _watch(self) -> None:
        while not self._gone.wait(POLL):
            if time.monotonic() > self._deadline:
                for process in self.processes:
                    process.kill()

    def dead(self, patience: float = 0.0) -> list[int]:
        """The numbers of those who are gone; waits for one to go as long as `patience` says, in seconds."""
        wait([process.sentinel for process in self.processes], patience)
        return [number for number, process in enumerate(self.processes) if not process.is_alive()]

    def _told(self, dead: Sequence[int]) -> str:
        """`a data worker died (process 71, SIGKILL) while it read b/c.png`."""
        names = self.notes.names()
        ends = [f"process {self.processes[n].pid}, {_end(self.processes[n].exitcode)}" for n in dead]
        read = [names[n] for n in dead if names[n]]
        return (
            "a data worker died"
            + (f" ({'; '.join(ends)})" if ends else "")
            + (f" while it read {', '.join(read)}" if read else "")
        )

    def reading(self) -> str:
        """` while they read a.png, b/c.png`; nothing where that is not known."""
        names = [name for name in self.notes.names() if name]
        return f" while they read {', '.join(names)}" if names else ""

    def explained(self, error: Exception) -> Exception:
        """What happened to the workers; `error` itself where it was raised by code that ran in one of them."""
        text = str(error)
        if any(shortage in text for shortage in SHORTAGES):
            return ShortageError(
                "the data workers lack shared memory or open files",
                hint="try fewer data.workers, or 0; enlarge /dev/shm; raise the limit of `ulimit -n`",
            )
        if "in DataLoader worker process" in text:
            return error
        dead = self.dead(SETTLING)
        if not dead and isinstance(error, RuntimeError) and "unexpectedly" not in text:
            return error
        memory = f"{shared_memory() / 1e6:,.1f} MB of shared memory are free"
        hint = f"it may have run out of memory ({memory}); try data.workers = 0, or fewer"
        return WorkersLostError(self._told(dead), hint=hint)

    def kill(self) -> None:
        """End all of them, the hung ones too, and wait until they are gone."""
        atexit.unregister(self.kill)
        self._gone.set()
        for process in self.processes:
            process.kill()
        deadline = time.monotonic() + SETTLING
        for process in self.processes:
            process.join(max(0.0, deadline - time.monotonic()))  # one that waits for a dead disk stays


@contextmanager
def spared_by_signals() -> Iterator[None]:
    """Processes that are started inside do not get the signals that ask to stop, until they let them in.

    Ctrl-C, and what a batch system sends, reach every process of the group. Without this the fork server would leave
    with a traceback while it still imports torch.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    from multiprocessing import resource_tracker

    before = signal.pthread_sigmask(signal.SIG_BLOCK, [WARNING])
    try:
        resource_tracker.ensure_running()  # it deals with SIGINT and SIGTERM itself, and then lets them in again
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def settle_worker(worker: int) -> None:  # noqa: ARG001
    """Make this data worker live and die with the process that reads from it.

    Ctrl-C and the SIGTERM of a batch system reach the whole process group; the training process then saves a
    checkpoint and ends its workers itself, so they let the first one pass. A second SIGTERM does end a worker: it is
    how a hung one is removed. Where the training process is killed, its workers leave at once.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if WARNING != signal.SIGTERM:
        signal.signal(WARNING, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _spare_once)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {*STOPPING, WARNING})
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def shared_memory() -> int:
    """Bytes that are free where processes share memory; 0 where that is no such place."""
    try:
        return shutil.disk_usage(SHARED_MEMORY).free
    except OSError:
        return 0


def _spare_once(signum: int, frame: object) -> None:  # noqa: ARG001
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()  # the reader; the parent that the system knows is the fork server
    if parent is not None:
        parent.join()
        os._exit(1)


def _end(code: int | None) -> str:
    if code is not None and -code in set(signal.Signals):
        return signal.Signals(-code).name
    return f"exit code {code}"
