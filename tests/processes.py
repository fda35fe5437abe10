"""Several processes that meet on this machine, for the tests of what they do together."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

QUIET = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONWARNINGS": "ignore"}


def free_port() -> int:
    """A port of this machine that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def ranks(
    *commands: Sequence[object], size: int = 2, folder: Path | None = None
) -> Iterator[list[subprocess.Popen[str]]]:
    """One Python process for each rank, as torchrun would start them; one command is for all of them."""
    shared = {**QUIET, "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    started = []
    try:
        for rank in range(size):
            command = [sys.executable, *map(str, commands[rank % len(commands)])]
            environment = {**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            started.append(start(command, environment, folder))
        yield started
    finally:
        for process in started:
            process.kill()
            process.communicate()


def torchrun(folder: Path, *arguments: object, size: int = 2) -> subprocess.Popen[str]:
    """torchrun itself, with `flexvae` and its arguments."""
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", size, "--master-port", free_port()]
    command = [sys.executable, *map(str, [*launcher, "-m", "flexvae_cli", *arguments])]
    return start(command, {**os.environ, **QUIET}, folder)


def start(command: list[str], environment: dict[str, str], folder: Path | None) -> subprocess.Popen[str]:
    """A process whose output is read."""
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, cwd=folder, stdout=pipe, stderr=pipe, text=True)
