"""Subcommands of plugins: listed from metadata alone, imported when called, and never the end of `--help`."""

from __future__ import annotations

import json

import pytest
from distributions import GOOD, Folder, flexvae, line_of

from flexvae_cli.entry_points import COMMANDS
from flexvae_cli.errors import Exit

COUNT = '''
from typing import Annotated

import typer

from flexvae_cli.api import UserError, emit


def count(
    words: list[str],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Count words.

    And say so.
    """
    if "none" in words:
        raise UserError("there are none", where="words", hint="give some")
    if "bug" in words:
        raise RuntimeError("a bug")
    emit([{"word": word, "letters": len(word)} for word in words], as_json=as_json)
'''
APP = '''
import typer

app = typer.Typer(help="Two of them.")


@app.command()
def one() -> None:
    """The first."""
    print("one")


@app.command()
def two() -> None:
    """The second."""
    raise typer.Exit(9)
'''


def add(folder: Folder, name: str, source: str | None, function: str, entry: str = "", version: str = "1.2") -> None:
    module = f"plugin_of_{name.replace('-', '_')}"
    folder.add(name, source, version, f"{module}:{function}", COMMANDS, entry)


def test_a_command_is_one_of_the_tool_s_own(folder):
    add(folder, "flexvae-count", COUNT, "count", "count-words")
    done = flexvae(folder, "count-words", "a", "bcd", "--json")
    assert json.loads(done.stdout) == [{"word": "a", "letters": 1}, {"word": "bcd", "letters": 3}], done.stderr
    lines = flexvae(folder, "count-words", "a", "bcd").stdout.splitlines()
    assert [line.split() for line in lines if "─" not in line and "-+-" not in line][-2:] == [["a", "1"], ["bcd", "3"]]
    asked = flexvae(folder, "count-words", "--help").stdout
    assert "flexvae_cli count-words [OPTIONS]" in asked
    assert "And say so." in asked
    wrong = flexvae(folder, "count-words", "--jsn", "x")
    assert wrong.returncode == Exit.USAGE
    assert "--jsn" in wrong.stderr
    refused = flexvae(folder, "count-words", "none")
    assert (refused.returncode, refused.stderr) == (
        Exit.USAGE,
        "error: words: there are none\n  hint: give some\n",
    )
    bug = flexvae(folder, "count-words", "bug")
    assert bug.returncode == Exit.UNEXPECTED
    at = f"{folder.path}/plugin_of_flexvae_count.py:{line_of(COUNT, 'a bug')}"
    assert f"unexpected RuntimeError in the plugin flexvae-count 1.2, {at}: a bug" in bug.stderr


def test_a_command_may_be_an_app_of_several(folder):
    add(folder, "pair", APP, "app")
    assert flexvae(folder, "pair", "one").stdout == "one\n"
    assert flexvae(folder, "pair", "two").returncode == 9
    assert "The second." in flexvae(folder, "pair", "--help").stdout


BROKEN = {
    "raises": ("import no_such_module_here\n", "run", "import fails: ModuleNotFoundError"),
    "exits": ("import sys\nsys.exit(3)\n", "run", "import fails: SystemExit: 3"),
    "lacks": ("x = 1\n", "run", "import fails: AttributeError"),
    "number": ("run = 3\n", "run", "plugin_of_number:run is a int; a command is a function or a typer.Typer"),
    "odd": ("def run(x: 'NoSuch'): ...\n", "run", "is no command: NameError"),
}


def test_broken_commands_are_listed_and_fail_when_they_are_called(folder):
    for name, (source, function, _) in BROKEN.items():
        add(folder, name, source, function)
    asked = flexvae(folder, "--help")
    assert asked.returncode == 0
    assert asked.stderr == ""
    for name in BROKEN:
        assert f"From {name} 1.2." in asked.stdout
    for name, (_, _, words) in BROKEN.items():
        done = flexvae(folder, name)
        assert done.returncode == Exit.PLUGIN
        assert done.stderr.startswith(f"error: command {name} ({name} 1.2): {words}")
        assert "Traceback" not in done.stderr


def test_what_the_metadata_tells_is_wrong(folder):
    add(folder, "thief", APP, "app", "train")
    add(folder, "shouts", APP, "app", "Count_Words")
    add(folder, "one", APP, "app", "both")
    add(folder, "two", APP, "app", "both", version="0.3")
    listed = flexvae(folder, "plugins", "--json")
    told = json.loads(listed.stdout)
    assert [(c["name"], c["distribution"], c["version"]) for c in told["commands"]] == [
        ("both", "one", "1.2"),
        ("Count_Words", "shouts", "1.2"),
        ("train", "thief", "1.2"),
        ("both", "two", "0.3"),
    ]
    problems = [
        "command Count_Words (shouts 1.2): 'Count_Words' is no name of a command: small letters and digits, a letter "
        "first, words joined by '-'",
        "command train (thief 1.2): the command 'train' belongs to flexvae and cannot be replaced",
        "the command 'both' is claimed by 'one' and 'two'\nhint: leave one out: FLEXVAE_NO_PLUGINS=two",
    ]
    assert told["problems"] == problems
    strict = flexvae(folder, "--strict-plugins", "layers")
    assert strict.returncode == Exit.PLUGIN
    assert all(problem.splitlines()[0] in strict.stderr for problem in problems)
    assert "Train an autoencoder" in flexvae(folder, "train", "--help").stdout
    both = flexvae(folder, "both", "one")
    assert both.returncode == Exit.USAGE
    assert "hint: leave one out: FLEXVAE_NO_PLUGINS=two" in both.stderr
    chosen = flexvae(folder, "both", "one", FLEXVAE_NO_PLUGINS="two")
    assert chosen.stdout == "one\n"


@pytest.mark.parametrize("variables", [{"FLEXVAE_NO_PLUGINS": "all"}, {"FLEXVAE_NO_PLUGINS": "pair"}])
def test_the_environment_leaves_commands_out(folder, variables):
    add(folder, "pair", APP, "app")
    folder.add("good", GOOD.format(code="Sine"))
    done = flexvae(folder, "pair", "one", **variables)
    assert done.returncode == Exit.USAGE
    assert "No such command" in done.stderr
    told = json.loads(flexvae(folder, "plugins", "--json", **variables).stdout)
    assert told["problems"] == []
    assert told["commands"][0]["skipped"] == "left out by FLEXVAE_NO_PLUGINS"
