"""What reaches the terminal, whatever the terminal is."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys

import pytest

from flexvae_cli import ui
from flexvae_cli.errors import FlexVAEError, Problem, UsageError, did_you_mean, listed, underlined

HOSTILE = "[red]x[/red] [/x] \x1b[2J\x07 \u202e é 漢"


def flexvae(*arguments: str, cwd, **environment: str) -> subprocess.CompletedProcess[bytes]:
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
    done = flexvae("inspect", str(hostile_file), cwd=tmp_path, **environment)
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
        done = flexvae(*arguments, cwd=tmp_path, **environment)
        assert done.returncode == 0, done.stderr
        json.loads(done.stdout)
    for arguments in (["inspect", "net.json"], ["layers"], ["plugins"], ["--help"]):
        done = flexvae(*arguments, cwd=tmp_path, **environment)
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
    codes = {cls.__name__: int(cls.code) for cls in FlexVAEError.__subclasses__()}
    assert codes["UsageError"] == 2
    assert codes["DataError"] == 3
    assert codes["ModelError"] == 4
    assert codes["ResourceError"] == 5
    assert codes["DivergedError"] == 6
    assert codes["PluginError"] == 7
