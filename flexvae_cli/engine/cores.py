"""How many CPUs this process may use, and threads for them: torch asks where it may run, not how much of the time."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import torch

from flexvae_cli.engine import rules

PROCESS = Path("/proc/self")
ROOTS = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/cpu"))  # of control groups, version 2 and 1


def cores() -> int:
    """CPUs that this process may run on, or fewer where its control group has a quota."""
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return rules.threads(own, cpu_quota())


def settle_threads() -> None:
    """Let torch take no more threads than the quota allows; `OMP_NUM_THREADS` says what it says."""
    if os.environ.get("OMP_NUM_THREADS"):
        return
    own = torch.get_num_threads()
    wanted = rules.threads(own, cpu_quota())
    if wanted != own:
        torch.set_num_threads(wanted)


def cpu_quota() -> float | None:
    """CPUs that the control group of this process, and every group around it, may keep busy; None without a limit."""
    try:
        groups = {line.split(":", 2)[2] for line in (PROCESS / "cgroup").read_text().splitlines()}
    except (OSError, IndexError):  # no Linux, or a /proc that shows nothing
        return None
    found: list[float] = []
    for root in ROOTS:
        for group in groups:
            folder = root / group.lstrip("/")
            found += (n for place in (folder, *folder.parents) if (n := _quota(place)) is not None)
    return min(found, default=None)


def _quota(place: Path) -> float | None:
    """What a group's own files say: a time, in every period."""
    with contextlib.suppress(OSError, ValueError):  # no such group, or no limit: "max"
        quota, period = map(int, (place / "cpu.max").read_text().split())
        return quota / period
    with contextlib.suppress(OSError, ValueError):
        quota, period = (int((place / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
        return quota / period if quota > 0 else None
    return None
