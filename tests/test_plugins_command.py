"""`flexvae plugins` and `--strict-plugins`: the tool works, and says what is wrong with which plugin."""

from __future__ import annotations

import json

import pytest
from distributions import GOOD, flexvae
from typer.testing import CliRunner

from flexvae_cli import builtin, plugins
from flexvae_cli.errors import Exit
from flexvae_cli.main import app


def test_the_command_survives_broken_plugins(folder):
    folder.add("exits", "import sys\nprint('noise')\nsys.exit(9)\n")
    folder.add("broken", "x = (\n", version="0.7")
    folder.add("good", GOOD.format(code="Sine"))
    done = flexvae(folder, "plugins", "--json")
    assert done.returncode == 0, done.stderr
    found = {p["distribution"]: p for p in json.loads(done.stdout)["plugins"]}
    assert (found["exits"]["state"], found["broken"]["state"], found["good"]["state"]) == ("failed", "failed", "ok")
    assert found["broken"]["version"] == "0.7"
    assert "plugin_of_broken.py:1)" in found["broken"]["problems"][0]
    assert found["good"]["specs"] == [{"kind": "layer", "name": "Sine"}]
    assert "Traceback" not in done.stderr


def test_strict_plugins_exits_with_7(folder):
    folder.add("broken", "x = (\n")
    done = flexvae(folder, "--strict-plugins", "plugins")
    assert done.returncode == Exit.PLUGIN
    assert "plugin broken (broken 1.2): import fails: SyntaxError" in done.stderr
    assert flexvae(folder, "--strict-plugins", "plugins", FLEXVAE_NO_PLUGINS="all").returncode == 0


def test_names_in_vain_are_shown_and_strictness_stops_at_them(folder):
    line = "FLEXVAE_NO_PLUGINS: names 'zork', which is not installed"
    assert line in flexvae(folder, "plugins", FLEXVAE_NO_PLUGINS="zork").stdout
    assert json.loads(flexvae(folder, "plugins", "--json", FLEXVAE_NO_PLUGINS="zork").stdout)["problems"] == [line]
    strict = flexvae(folder, "--strict-plugins", "plugins", FLEXVAE_NO_PLUGINS="zork")
    assert strict.returncode == Exit.PLUGIN
    assert line in strict.stderr


@pytest.fixture
def command(folder, monkeypatch):
    """Runs `flexvae` in this process with the folder's plugins."""

    def run(*arguments: str):
        loaded = folder.load()
        monkeypatch.setattr(plugins, "installed", lambda: loaded)
        return CliRunner().invoke(app, list(arguments))

    return run


def test_the_table_and_its_problems(folder, command):
    folder.add("broken", "x = (\n", version="0.7")
    folder.add("good", GOOD.format(code="Sine"))
    result = command("plugins")
    assert result.exit_code == 0
    rows = {line.split()[0]: line for line in result.stdout.splitlines() if line}
    assert "1 layer " in rows["good"]
    assert rows["good"].rstrip().endswith("ok")
    assert f"{len(builtin.flexvae_losses())} losses" in rows["builtin"]
    assert "broken (broken 0.7): import fails: SyntaxError: '(' was never closed" in result.stdout
    assert "ms" not in result.stdout.splitlines()[0].split()
    assert "ms" in command("plugins", "--timings").stdout.splitlines()[0].split()


def test_a_slow_plugin_is_told(folder, command, monkeypatch):
    folder.add("slow", GOOD.format(code="Sine"))
    assert "to load" not in command("plugins").stderr
    monkeypatch.setattr(plugins, "SLOW", 0.0)
    assert "slow (slow 1.2) takes 0.0 s to load" in command("plugins").stderr
