"""Signals, at any moment: work is saved where there is some, the exit code is the signal's, no process is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest

from flexvae_cli.engine.interrupt import Interrupt, Stopped
from flexvae_cli.engine.observers import observed
from flexvae_cli.errors import Terminated
from flexvae_cli.faults import isolated
from flexvae_cli.signals import ending_in_order

linux = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="the harness needs Linux")
CONFIG = """
model = { encoder = "e.json", decoder = "d.json" }
data = { source = "builtin:scenery", input = "3x16x16", validation = 0, workers = 2 }
train = { run_dir = "run", max_steps = 1000000, batch_size = 4, preview_every = 0, device = "cpu" }
"""


@linux
@pytest.mark.timeout(1200)
def test_trainings_at_every_moment(harness, fuzz_factor):
    """Every kind of signal, once and SIGINT twice, at 20 moments of the work, and some at random ones."""
    found = harness("signals", 6 * min(fuzz_factor, 10))
    assert not found["failed"], found["failed"]
    assert found.pop("kills") >= 80
    assert found.pop("orphans") > 0  # where the second SIGINT came while a checkpoint was written
    assert found.pop("runs") > 0
    assert found == {"left": 0, "invalid": 0, "different": "", "failed": ""}


@linux
def test_encodes_at_every_moment(harness, fuzz_factor):
    found = harness("encode", 3 * min(fuzz_factor, 10))
    assert not found["failed"], found["failed"]
    assert found.pop("kills") >= 9
    assert found == {"runs": 0, "orphans": 0, "left": 0, "invalid": 0, "different": "", "failed": ""}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "flexvae.toml").write_text(CONFIG)
    (tmp_path / "e.json").write_text(json.dumps(["C2d_3_8_4_4", "SiLU", "C2d_8_4_1"]))
    (tmp_path / "d.json").write_text(json.dumps(["C2d_2_8_1", "SiLU", "UpS_4", "C2d_8_3_3_1_1"]))
    return tmp_path


def members(group: int) -> list[list[str]]:
    """The command lines of the living processes of a process group."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rsplit(")", 1)[1].split()
            if int(fields[2]) == group and fields[0] != "Z":
                found.append(status.with_name("cmdline").read_text().split("\0"))
        except OSError:
            continue
    return found


@linux
@pytest.mark.parametrize(
    ("numbers", "until", "code"),
    [
        ([signal.SIGINT], "resource_tracker", 130),  # the fork server still imports torch
        ([signal.SIGUSR1, signal.SIGTERM], "step-00000000", 143),  # as a batch system sends them, to every process
    ],
)
def test_a_whole_group_of_real_processes(project, numbers, until, code):
    command = [sys.executable, "-m", "flexvae_cli", "train"]
    process = subprocess.Popen(command, cwd=project, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 120

    def there() -> bool:
        ready = (project / "run/ckpt" / until).exists() or any(until in " ".join(line) for line in members(process.pid))
        assert ready or (process.poll() is None and time.monotonic() < deadline)
        return ready

    try:
        while not there():
            time.sleep(0.01)
        for number in numbers:
            os.killpg(process.pid, number)
            time.sleep(0.05)
        said = process.communicate(timeout=120)[1]
        assert process.returncode == code, said
        assert "saved; continue with" in said
        assert "Traceback" not in said
        while members(process.pid) and time.monotonic() < deadline + 60:
            time.sleep(0.05)
        assert members(process.pid) == []
    finally:
        process.kill()


def test_a_signal_is_remembered_once():
    with Interrupt() as interrupt:
        assert list(interrupt.until([1, 2])) == [1, 2]
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupt.signal == signal.SIGTERM
        assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL  # the next one acts at once
        assert signal.getsignal(signal.SIGUSR1) != signal.SIG_DFL
        with pytest.raises(Stopped):
            interrupt.check()
        with pytest.raises(Stopped):
            list(interrupt.until([1]))
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 143)])
def test_a_program_that_is_asked_to_end_does_so_by_way_of_its_clean_up(number, code):
    cleaned = []
    with (
        pytest.raises(SystemExit) as ended,
        ending_in_order(),
        closing(SimpleNamespace(close=lambda: cleaned.append(1))),
    ):
        os.kill(os.getpid(), number)
    assert ended.value.code == code
    assert cleaned
    assert signal.getsignal(number) == signal.SIG_DFL


class Careless:
    """Is interrupted as it is given up, where Python cannot raise anything."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        os.kill(os.getpid(), self.number)


@pytest.mark.parametrize(("number", "error"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)])
def test_an_interruption_that_python_loses_is_sent_anew(number, error):
    def work() -> None:
        Careless(number)
        for _ in range(6000):
            time.sleep(0.01)

    with pytest.raises(error), ending_in_order():
        work()


@pytest.mark.parametrize(("number", "error"), [(signal.SIGTERM, Terminated), (signal.SIGINT, KeyboardInterrupt)])
def test_a_signal_while_a_plugin_is_at_work_is_no_fault_of_it(number, error):
    def work() -> None:
        os.kill(os.getpid(), number)
        time.sleep(60)

    problems: list[str] = []
    with pytest.raises(error), ending_in_order():
        isolated(work, problems, "import fails")
    with pytest.raises(error), ending_in_order():
        list(observed([], {"one": SimpleNamespace(close=work)}))
    assert problems == []


def test_a_signal_that_is_ignored_stays_so():
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with ending_in_order():
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
