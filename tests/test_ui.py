"""What reaches the terminal, whatever the terminal is."""

from __future__ import annotations

import errno
import importlib
import io
import json
import os
import subprocess
import sys

import pytest

from flexvae_cli import main, ui
from flexvae_cli.errors import ERRORS, Problem, UsageError, did_you_mean, listed, underlined

HOSTILE = "[red]x[/red] [/x] \x1b[2J\x07 \u202e é 漢"


def process(*arguments: str, cwd, **environment: str) -> subprocess.CompletedProcess[bytes]:
    env = {**os.environ, **environment}
    return subprocess.run(
        [sys.executable, "-m", "flexvae_cli", *arguments], capture_output=True, check=False, env=env, cwd=cwd
    )


@pytest.fixture
def hostile_file(tmp_path):
    path = tmp_path / "net[red]\x1b[2J.json"
    path.write_text(json.dumps([HOSTILE, "C2d_3_[/x]_3", "SiLU_\x1b[31m"]))
    return path


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"COLUMNS": "20"},
        {"TERM": "dumb", "NO_COLOR": "1"},
    ],
    ids=["plain", "C locale", "narrow", "dumb"],
)
def test_hostile_names_and_codes_do_not_steer_or_break_the_terminal(hostile_file, environment, tmp_path):
    done = process("inspect", str(hostile_file), cwd=tmp_path, **environment)
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr
    assert b"\x1b" not in done.stderr + done.stdout
    assert done.stderr.count(b"error: ") == 3


@pytest.mark.parametrize(
    "environment", [{"COLUMNS": "20"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}]
)
def test_json_on_stdout_parses_whatever_the_terminal(tmp_path, environment):
    (tmp_path / "net.json").write_text('["C2d_3_4_3_1_1", "SiLU"]')
    for arguments in (["inspect", "net.json", "--json"], ["layers", "--json"], ["plugins", "--json"]):
        done = process(*arguments, cwd=tmp_path, **environment)
        assert done.returncode == 0, done.stderr
        json.loads(done.stdout)
    for arguments in (["inspect", "net.json"], ["layers"], ["plugins"], ["--help"]):
        done = process(*arguments, cwd=tmp_path, **environment)
        assert done.returncode == 0, done.stderr
        assert b"Traceback" not in done.stderr


def test_an_unexpected_error_is_one_line_and_a_traceback_is_asked_for(tmp_path):
    code = "import flexvae_cli.commands.layers as l, flexvae_cli.main as m; m.app = lambda: 1 / 0; m.run()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr == "error: unexpected ZeroDivisionError: division by zero\n  hint: FLEXVAE_DEBUG=1 shows where\n"
    env = {**os.environ, "FLEXVAE_DEBUG": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path, env=env
    )
    assert "Traceback" in done.stderr


def test_an_error_prints_all_its_problems(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    ui.error(UsageError(Problem("is wrong", "f.json[1]", "abc", (1, 2), hint="write it right"), Problem("too")))
    assert stream.getvalue() == ("error: f.json[1]: is wrong\n  abc\n   ^\n  hint: write it right\nerror: too\n")


def test_long_texts_are_shown_around_the_span():
    text = "a" * 300 + "WRONG" + "b" * 300
    shown, carets = underlined(text, (300, 305))
    assert len(shown) < 120
    assert shown[carets.index("^") : carets.rindex("^") + 1] == "WRONG"


def test_suggestions():
    assert did_you_mean("kernel-sise", ["kernel-size", "stride"]) == "; did you mean 'kernel-size'?"
    assert did_you_mean("vaerb", ["VAERB", "VAEA"]).startswith("; did you mean 'VAERB'")
    assert did_you_mean("zzz", ["VAERB"]) == ""
    assert listed(["a"]) == "'a'"
    assert listed(["a", "b", "c"]) == "'a', 'b' or 'c'"


def test_an_error_carries_its_exit_code():
    assert {code: kind.__name__ for code, kind in ERRORS.items()} == {
        2: "UsageError",
        3: "DataError",
        4: "ModelError",
        5: "ResourceError",
        6: "DivergedError",
        7: "PluginError",
    }


def raising(error: Exception, *imports: str):
    """What `flexvae` makes of an error that no command expects."""

    def app() -> None:
        for module in imports:
            importlib.import_module(module)
        raise error

    return app


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (MemoryError(), 5, "error: out of memory: MemoryError\n"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 8 bytes\nmore"),
            5,
            "error: out of memory: [enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 8 bytes\n",
        ),
        (OSError(errno.ENOSPC, "No space left on device"), 5, "error: no space left: [Errno 28] No space left"),
        (OSError(errno.EFBIG, "File too large"), 5, "error: no space left: [Errno 27] File too large"),
        (OSError(errno.EIO, "Input/output error"), 1, "error: unexpected OSError: [Errno 5] Input/output error\n"),
        (RuntimeError("shape '[4]' is invalid"), 1, "error: unexpected RuntimeError: shape '[4]' is invalid\n"),
    ],
)
def test_a_lack_of_the_machine_is_no_fault_of_the_program(flexvae, monkeypatch, error, code, said):
    monkeypatch.setattr(main, "app", raising(error, "torch"))
    ended = flexvae()
    assert ended.exit_code == code
    assert ended.stderr.startswith(said)
    assert "hint: " in ended.stderr
    assert ("flexvae mem" in ended.stderr) == said.startswith("error: out of memory")


def test_memory_that_runs_out_before_torch_is_there_does_not_bring_it(tmp_path):
    code = """
import sys, flexvae_cli.main as m
def app(): raise MemoryError
m.app = app
try: m.run()
finally: assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 5, done.stderr
