"""Runs one trial in a process of its own, so that neither running out of memory nor a crash touches this one."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import IO, Any, Literal, cast

from flexvae_cli.errors import ERRORS, FlexVAEError, Problem

PROGRAM = "flexvae_cli.engine.memory.trial"
TIME_LIMIT = 600.0  # seconds for a trial
ADDR_NO_RANDOMIZE, ASK = 0x0040000, 0xFFFFFFFF  # of personality(2)


@dataclass(frozen=True, slots=True)
class Request:
    """What a trial is to do.

    Attributes:
        document: a config's document, see `Config`.
        config: the file that it came from.
        batch: samples of a micro-batch.
        limit: bytes that the trial may take; by default what the device has available.
        detailed: whether to measure tensors apart, which costs a third step on a CPU.
    """

    document: dict[str, Any]
    config: str
    batch: int
    limit: int | None = None
    detailed: bool = False


@dataclass(frozen=True, slots=True)
class Trial:
    """What came of a trial; zero and empty stand for what it could not tell.

    Attributes:
        batch: samples of a micro-batch.
        outcome: `done`, or what it ended by: `memory`, `killed` by the system (which takes memory back so), `time`.
        device: where it ran.
        available: bytes that were available there for it.
        peak: bytes it needed: resident in the process on a CPU, reserved by torch on CUDA.
        tensors: bytes of its tensors when they were most.
        parameters, parameter_tensors: trained numbers, and the tensors that they make up.
        training: bytes that training keeps beside weights and gradients.
        note: what there is to say of the step, such as which phase it is of.
    """

    batch: int
    outcome: Literal["done", "memory", "killed", "time"]
    device: str = ""
    available: int = 0
    peak: int = 0
    tensors: int = 0
    parameters: int = 0
    parameter_tensors: int = 0
    training: int = 0
    note: str = ""

    def fits(self, memory: int) -> bool:
        return self.outcome == "done" and self.peak <= memory


def run_trial(request: Request, time_limit: float = TIME_LIMIT) -> Trial:
    """Run a trial to its end. No process is left behind, whatever happens.

    Raises:
        FlexVAEError: it failed, and not for want of memory or time.
    """
    return _judged(request.batch, *run_program(PROGRAM, asdict(request), time_limit))


def run_program(program: str, request: dict[str, Any], time_limit: float) -> tuple[int | None, dict[str, Any], str]:
    """Run one of this package's programs to its end.

    Returns:
        Its exit status, negative for a signal and None where it took too long; the facts that it told; its stderr.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        ended = _run(program, request, out, err, time_limit)
        out.seek(0)
        err.seek(0)
        facts: dict[str, Any] = {}
        for line in out.read().splitlines():
            facts |= json.loads(line)
        return ended, facts, err.read().decode(errors="replace")


def _run(program: str, request: dict[str, Any], out: IO[bytes], err: IO[bytes], time_limit: float) -> int | None:
    """The exit status of the program, negative for a signal; None where it took too long."""
    command = [sys.executable, "-P", "-m", program]  # -P: no file of the working directory stands in for a module
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": out, "stderr": err}
    same = {**os.environ, "PYTHONHASHSEED": "0"}
    with _same_addresses():
        process = subprocess.Popen(command, bufsize=0, env=same, **pipes)  # noqa: S603
    stdin = cast(IO[bytes], process.stdin)
    try:
        with contextlib.suppress(BrokenPipeError):  # it is gone already; its exit status says why
            stdin.write(json.dumps(request).encode() + b"\n")
        return process.wait(time_limit)  # stdin stays open: the program leaves when it closes
    except subprocess.TimeoutExpired:
        return None
    finally:
        process.kill()
        process.wait()
        stdin.close()


@contextlib.contextmanager
def _same_addresses() -> Iterator[None]:
    """While held, programs that are started begin at the same addresses every time, on Linux.

    Addresses and hashes decide in which order things in sets are released, which cuts up the heap in different ways:
    the peak of a step on a CPU differs by up to a sixth from run to run. With both the same, a trial that is made
    again needs what it needed within a few percent, for threads still take turns as they like. Where the system does
    not allow it, addresses stay as they are.
    """
    if sys.platform != "linux":
        yield
        return
    personality = ctypes.CDLL(None).personality
    before = personality(ASK)
    personality(before | ADDR_NO_RANDOMIZE)  # of this process it changes nothing
    try:
        yield
    finally:
        personality(before)


def _judged(batch: int, ended: int | None, facts: dict[str, Any], stderr: str) -> Trial:
    """What the facts and the end of a program mean."""
    raise_problems(facts, stderr)
    if ended is None:
        facts.setdefault("outcome", "time")
    elif ended == -signal.SIGKILL:
        facts.setdefault("outcome", "killed")
    if "error" in facts or "outcome" not in facts:
        what = f"a training step at batch {batch} fails: {reason(ended, facts, stderr)}"
        raise FlexVAEError(what, hint="FLEXVAE_DEBUG=1 shows where") from RuntimeError(stderr)
    return Trial(batch, **facts)


def raise_problems(facts: dict[str, Any], stderr: str) -> None:
    """Raise the user's error that a program told, if it did."""
    if "problems" in facts:
        problems = [Problem(**{**p, "span": p["span"] and tuple(p["span"])}) for p in facts["problems"]]
        raise ERRORS.get(facts["code"], FlexVAEError)(*problems) from RuntimeError(stderr)


def reason(ended: int | None, facts: dict[str, Any], stderr: str) -> str:
    """Why a program failed."""
    return facts.get("error") or f"its process ended with status {ended} ({_last_line(stderr)})"


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "no message")
