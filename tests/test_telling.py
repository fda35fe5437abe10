"""What `flexvae train` says while it trains."""

from __future__ import annotations

import fcntl
import os
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from flexvae_cli.commands import _telling
from flexvae_cli.commands._telling import Pace, follow
from flexvae_cli.engine.events import Advanced, Finished, Logged, Started, Validated
from flexvae_cli.engine.rundir import RunDirectory

STARTED = Started(0, 20, 5, "cpu", 1000, 40, 4, resumed=False)
LOGGED = Logged(10, {"loss": 0.5, "reconstruction": 0.4, "lr": 1e-3})
VALIDATED = Validated(20, {"loss": 0.5, "psnr": 20.0, "ssim": 0.5})


def events():
    yield STARTED
    for step in range(1, 21):
        yield Advanced(step)
        if step == 10:
            yield LOGGED
    yield VALIDATED
    yield Finished(20, 3.0)


def test_off_a_terminal_every_event_has_its_line_and_the_log_the_same(tmp_path, capsys):
    with RunDirectory(tmp_path / "run") as run:
        run.write_config({})
        summary, signal = follow(events(), run, Path("c.toml"), 20)
    said = capsys.readouterr().err
    assert (tmp_path / "run/log.txt").read_text() == said
    lines = said.splitlines()
    assert lines[1] == "1,000 parameters, 40 images (4 held out), cpu, 20 steps, 5 to an epoch"
    assert re.fullmatch(
        r"step     10  loss 0\.50000 \(reconstruction 0\.4\)  lr 1\.00e-03  \d+:\d\d:\d\d left", lines[2]
    )
    assert lines[3] == "validation at step 20:  loss 0.50000  PSNR 20.00 dB  SSIM 0.5000"
    assert lines[4].startswith("done: 20 steps, 3 s in this session; next: flexvae report ")
    assert (summary["step"], signal) == (20, 0)
    assert summary["train"] == {"step": 10, **LOGGED.values}
    assert summary["validation"] == {"step": 20, **VALIDATED.values}


def test_the_time_left_follows_the_pace_of_this_session(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(_telling.time, "monotonic", lambda: now[0])
    pace = Pace()
    assert pace.left(1) == ""  # nothing has begun
    pace.begin(500, 1000)
    assert pace.left(500) == ""
    now[0] += 60
    assert pace.left(510) == "0:49:00 left"  # 10 steps took a minute, whatever the 500 before them took
    now[0] += 36_000
    assert pace.left(900) == "2:30:15 left"
    assert pace.left(1000) == ""


PROGRAM = """
import sys
from pathlib import Path
from flexvae_cli.commands._telling import follow
from flexvae_cli.engine.rundir import RunDirectory
from flexvae_cli import ui
sys.path.insert(0, sys.argv[1])
from test_telling import events
with RunDirectory(Path("run")) as run:
    run.write_config({})
    follow(events(), run, Path("c.toml"), 20)
"""


@pytest.mark.parametrize("columns", [60, 120])
def test_on_a_terminal_the_numbers_are_in_one_line_with_the_bar(tmp_path, columns):
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    command = [sys.executable, "-c", PROGRAM, str(Path(__file__).parent)]
    environment = {key: value for key, value in os.environ.items() if key != "COLUMNS"} | {"TERM": "xterm"}
    with subprocess.Popen(command, cwd=tmp_path, stderr=theirs, env=environment) as process:
        os.close(theirs)
        screen = b"".join(iter(lambda: _read(ours), b"")).decode()
    os.close(ours)
    assert process.returncode == 0, screen
    lines = [line for line in re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen)) if line.strip()]
    assert all(len(line) <= columns for line in lines if "steps" in line and "━" in line)
    (bar, *_) = [line for line in reversed(lines) if "━" in line]
    assert "20/20 steps" in bar
    assert "loss 0.5" in bar
    assert any(line.startswith("validation at step 20") for line in lines)
    assert not any(line.startswith("step ") for line in lines)
    assert "step     10  loss" in (tmp_path / "run/log.txt").read_text()


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:  # the other end is closed
        return b""
