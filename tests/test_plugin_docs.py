"""The listings of docs/plugins.md are a plugin: it is written out, checked, trained with and called."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from flexvae_cli import hookspecs
from flexvae_cli.engine.folders import write_folder
from flexvae_cli.kit.distribution import found
from flexvae_cli.kit.new import files_of, names_of
from flexvae_cli.plugins import installed

PAGE = (Path(__file__).parents[1] / "docs/plugins.md").read_text("utf-8")
NAME = "flexvae-layers-sine"
LISTINGS = dict(re.findall(r"`([\w./]+)`(?:, with [^\n]*)?:\n\n```\w+\n(.*?)^```", PAGE, re.M | re.S))


@pytest.fixture(scope="module")
def plugin(tmp_path_factory) -> Path:
    """The folder that `plugins new` writes, with the page's listings put into it."""
    folder = tmp_path_factory.mktemp("page")
    files = files_of(names_of(NAME, "", installed().registry))
    points = files["pyproject.toml"].decode().partition("[project.entry-points.flexvae]")
    rest = points[2].partition("[tool.")
    files["pyproject.toml"] = (points[0] + LISTINGS["pyproject.toml"] + rest[1] + rest[2]).encode()
    of_package = {name: text.encode() for name, text in LISTINGS.items() if name.endswith(".py")}
    write_folder(folder / NAME, files | of_package)
    for name in ("sine.toml", "encoder.json", "decoder.json"):
        (folder / name).write_text(LISTINGS[name])
    return folder


def run(plugin: Path, *arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    """A command, with the package of the page as if it were installed."""
    with found(str(plugin / NAME)) as laid_out:
        path = os.pathsep.join(map(str, laid_out.folders))
        command = [sys.executable, *map(str, arguments)]
        environment = {**os.environ, "PYTHONPATH": path}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=plugin, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done


def test_the_page_has_every_hook_and_every_listing():
    assert set(LISTINGS) == {
        "pyproject.toml",
        "sine.toml",
        "encoder.json",
        "decoder.json",
        "tests/test_plugin.py",
        *(f"flexvae_layers_sine/{part}.py" for part in ("plugin", "blocks", "training", "data", "commands")),
    }
    for hook in hookspecs.KINDS:
        assert f"| `{hook}` |" in PAGE, hook


def test_its_own_tests_pass(plugin):
    assert "1 passed" in run(plugin, "-m", "pytest", "-q", "-p", "no:cacheprovider", NAME).stdout


def test_nothing_is_to_be_mended(plugin):
    told = json.loads(run(plugin, "-m", "flexvae_cli", "plugins", "check", NAME, "--json").stdout)
    assert told["to_mend"] == 0
    assert {finding["subject"] for finding in told["findings"]} == {
        "plugin",
        "command largest-weights",
        "layer Sine",
        "loss cosine",
        "bottleneck Bounded",
        "callback done",
        "reader signals",
    }


def test_the_reader_gives_what_it_has_written(plugin):
    code = """
import json, sys
from pathlib import Path
from flexvae_cli.api import BadFile
from flexvae_cli.plugins import installed
spec = installed().registry.find("reader", "signals").spec
made, path = spec.factory(most=5.0), Path("one.signal")
path.write_text("[0, 2.5, -5]")
found = made.read(path, (1, 2))
samples = ((found.data.T - found.low) / (found.high - found.low) * 2 - 1).astype("float32")
assert samples.tolist() == [[0.0, 0.5, -1.0]], samples
assert made.header(path, (1, 2)).shape == (1, 3)
assert json.loads(made.write(samples, found.about, made.suffix(path.name))) == [0, 2.5, -5]
path.write_text("[1, [2]]")
try:
    made.read(path, (1, 2))
except BadFile as bad:
    print(bad.reason)
"""
    assert run(plugin, "-c", code).stdout.startswith("is no JSON list of numbers")


def test_the_config_trains_and_the_command_reads_the_run(plugin):
    trained = run(plugin, "-m", "flexvae_cli", "train", "--config", "sine.toml")
    assert "cosine" in trained.stderr
    assert json.loads((plugin / "run/end.json").read_text()) == {"step": 2, "signal": 0}
    assert (plugin / "run/metrics.csv").read_text().startswith("step,kind,loss")
    rows = json.loads(run(plugin, "-m", "flexvae_cli", "largest-weights", "run", "--count", "2", "--json").stdout)
    assert len(rows) == 2
    assert rows[0]["largest"] >= rows[1]["largest"] > 0
    assert "coder." in rows[0]["tensor"]
    refused = run(plugin, "-m", "flexvae_cli", "largest-weights", "run", "--count", "0", code=2)
    assert refused.stderr == "error: --count is at least 1\n"
