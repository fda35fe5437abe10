"""stdout and stderr that are closed, full, or read by nobody."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(os.name != "posix", reason="pipes and devices of POSIX")
FLEXVAE = f"{sys.executable} -m flexvae_cli"


def shell(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """`FLEXVAE` is the command; the exit code is that of the last one in the line."""
    command = command.replace("FLEXVAE", FLEXVAE)
    return subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False, cwd=folder)


def to_a_closed_pipe(*arguments: str, folder: Path, stderr_too: bool = False) -> subprocess.CompletedProcess[str]:
    """Run it with a stdout that nobody reads."""
    read, write = os.pipe()
    os.close(read)
    err = write if stderr_too else subprocess.PIPE
    command = [sys.executable, "-m", "flexvae_cli", *arguments]
    done = subprocess.run(command, stdout=write, stderr=err, text=True, check=False, cwd=folder)
    os.close(write)
    return done


@pytest.mark.parametrize("arguments", [["layers"], ["layers", "--json"], ["--help"], ["--version"], ["plugins"]])
def test_a_reader_that_is_gone_is_no_error(tmp_path, arguments):
    done = to_a_closed_pipe(*arguments, folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_error_that_nobody_reads_keeps_its_exit_code(tmp_path):
    assert to_a_closed_pipe("inspect", "none.json", folder=tmp_path, stderr_too=True).returncode == 2


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("FLEXVAE layers >&-", 0),
        ("FLEXVAE layers --json >&-", 0),
        ("FLEXVAE plugins >&- 2>&-", 0),
        ("FLEXVAE --help <&- >&- 2>&-", 0),
        ("FLEXVAE inspect none.json 2>&-", 2),
        ("FLEXVAE inspect none.json >&- 2>&-", 2),
        ("FLEXVAE inspect none.json 2>/dev/full", 2),
    ],
)
def test_a_stream_that_is_closed_is_no_error(tmp_path, command, code):
    done = shell(command, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "")


@pytest.mark.parametrize("arguments", ["layers", "layers --json", "--help"])
def test_results_that_cannot_be_written_are_an_error_in_one_line(tmp_path, arguments):
    done = shell(f"FLEXVAE {arguments} >/dev/full", tmp_path)
    assert done.returncode == 5
    assert done.stderr == "error: stdout: cannot be written: No space left on device\n"


def test_no_file_takes_the_number_of_a_stream_that_is_closed(tmp_path):
    code = "from flexvae_cli.streams import open_streams as o; o(); print(open('f').fileno(), file=open('n', 'w'))"
    (tmp_path / "f").write_text("")
    assert shell(f'{sys.executable} -c "{code}" <&- >&- 2>&-', tmp_path).returncode == 0
    assert int((tmp_path / "n").read_text()) > 2
