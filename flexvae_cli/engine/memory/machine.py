"""The memory of this machine and of this process, as Linux tells it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from flexvae_cli.errors import UsageError

INTERVAL = 0.01  # seconds between two looks at this process
PROCESS, MACHINE = Path("/proc/self"), Path("/proc/meminfo")
CONTROL_GROUPS = (  # root, limit, usage, and the key in memory.stat for cached files that can be dropped: version 2, 1
    (Path("/sys/fs/cgroup"), "memory.max", "memory.current", "inactive_file"),
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def process_memory(key: Literal["RssAnon", "VmHWM"]) -> int:
    """Bytes of this process: resident now and not backed by files, or the most ever resident, files and all."""
    return _field(PROCESS / "status", f"{key}:") * 1024


def available_memory() -> int:
    """Bytes that can be taken without swapping: what is left in this machine or, if less, in a control group.

    Raises:
        UsageError: this is no Linux.
    """
    try:
        left = [_field(MACHINE, "MemAvailable:") * 1024]
        groups = {line.split(":", 2)[2] for line in (PROCESS / "cgroup").read_text().splitlines()}
    except OSError:
        raise UsageError("mem measures a CPU on Linux alone", hint="use --device cuda, where there is one") from None
    for group in groups:
        left += _left_in_group(group)
    return min(left)


def _left_in_group(group: str) -> list[int]:
    """What a control group, and every group around it, has left of its limit."""
    left = []
    for root, limit, usage, cache in CONTROL_GROUPS:
        folder = root / group.lstrip("/")
        for place in (folder, *folder.parents):
            with contextlib.suppress(OSError, ValueError):  # no such group, or no limit: "max"
                used = int((place / usage).read_text()) - _field(place / "memory.stat", cache)
                left.append(max(0, int((place / limit).read_text()) - used))
    return left


def _field(path: Path, key: str) -> int:
    """The number behind `key` in a file with a key on every line."""
    for line in path.read_text().splitlines():
        if line.startswith(key) and line[len(key)].isspace():
            return int(line.split()[1])
    raise OSError(f"{path} has no {key}")


@contextlib.contextmanager
def watched(limit: int, exceeded: Callable[[], None]) -> Iterator[None]:
    """Inside, `exceeded` is called, in a thread, as soon as this process has needed more than `limit` bytes.

    A limit of the kernel's (`RLIMIT_DATA`) would not do: what torch takes then fails with an error, but libraries under
    it crash, and a crash of the net's own would look the same.
    """
    left = threading.Event()

    def watch() -> None:
        while not left.wait(INTERVAL):
            if process_memory("VmHWM") > limit:
                exceeded()
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        left.set()
        thread.join()


def prefer_as_victim() -> None:
    """Should the machine run out of memory, the kernel kills this process before its parent."""
    with contextlib.suppress(OSError):
        (PROCESS / "oom_score_adj").write_text("1000")
