"""The plugin author's kit: what `plugins new` writes is a whole plugin, and `plugins check` finds what is planted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flexvae_cli import builtin
from flexvae_cli.api import callback, loss, reader, testing
from flexvae_cli.engine.folders import write_folder
from flexvae_cli.errors import Exit, UsageError
from flexvae_cli.kit import check as kit_check
from flexvae_cli.kit.contract import findings, of_spec
from flexvae_cli.kit.distribution import found
from flexvae_cli.kit.new import files_of, names_of
from flexvae_cli.plugins import installed

NAME = "flexvae-layers-gain"


def python(*arguments: object, at: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **variables}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=at, check=False)


def write(folder: Path, name: str = NAME, code: str = "") -> Path:
    """A plugin as `plugins new` writes it."""
    write_folder(folder / name, files_of(names_of(name, code, installed().registry)))
    return folder / name


def test_a_new_plugin_installs_passes_its_tests_and_its_check_and_is_a_layer(tmp_path):
    made = python("-m", "flexvae_cli", "plugins", "new", NAME, at=tmp_path)
    assert made.returncode == 0, made.stderr
    assert made.stderr.splitlines()[-1].startswith(f"next: pip install -e {NAME}, flexvae plugins check {NAME}")
    assert "$" not in "".join(path.read_text() for path in (tmp_path / NAME).rglob("*") if path.is_file())
    tested = python("-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", at=tmp_path / NAME)
    assert tested.returncode == 0, tested.stdout + tested.stderr
    assert "4 passed" in tested.stdout
    site = tmp_path / "site"
    pip = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", site]
    put = python(*pip, tmp_path / NAME, at=tmp_path, PIP_DISABLE_PIP_VERSION_CHECK="1")
    assert put.returncode == 0, put.stderr
    checked = python("-m", "flexvae_cli", "plugins", "check", NAME, "--json", at=tmp_path, PYTHONPATH=str(site))
    told = json.loads(checked.stdout)
    assert (told["distribution"], told["version"], told["to_mend"]) == (NAME, "0.1.0", 0)
    assert {f["state"] for f in told["findings"] if f["check"] != "import time"} == {"ok"}
    passed = {f["check"] for f in told["findings"] if f["subject"] == "layer Gain"}
    assert {"docs", "trace rule", "bfloat16", "meta device", "global state", "seeding", "torch.export"} <= passed
    (tmp_path / "net.json").write_text('["C2d_3_8_3_1_1", "Gain_8_0.5", "SiLU"]')
    seen = python("-m", "flexvae_cli", "inspect", "net.json", "--json", at=tmp_path, PYTHONPATH=str(site))
    assert seen.returncode == 0, seen.stderr
    assert "Gain_8_0.5" in seen.stdout


FAULTY = '''
import os
import torch; torch.set_default_dtype(torch.float64)

os.environ["FLEXVAE_TEST_MARK"] = "1"

from flexvae_cli.api import bottleneck, hookimpl, layer, loss, same

FLEXVAE_API = 1


@layer("Bare", trace=same)
def bare(slope: float = 1.0):
    from torch import nn

    return nn.LeakyReLU(slope)


@layer("Seeds", trace=same)
def seeds():
    """Seeds.

    Examples:
        Seeds: 3x4x4 -> 3x4x4
    """
    import torch

    torch.manual_seed(0)
    return torch.nn.SiLU()


@layer("Thing", trace=same)
def thing():
    """No module.

    Examples:
        Thing: 3x4x4 -> 3x4x4
    """
    return lambda x: x[0]


@layer("Branch", trace=same)
def branch():
    """Branches on a value, which torch.export cannot follow.

    Examples:
        Branch: 3x4x4 -> 3x4x4
    """
    from torch import nn

    class Branch(nn.Module):
        def forward(self, x):
            return x if x.is_meta or x.detach().square().sum() > -1 else 2 * x

    return Branch()


@hookimpl
def flexvae_layers():
    return [bare, seeds, thing, branch]
'''


def test_the_check_of_a_folder_names_what_to_mend(tmp_path):
    folder = write(tmp_path)
    (folder / "flexvae_layers_gain/plugin.py").write_text(FAULTY)
    done = python("-m", "flexvae_cli", "plugins", "check", folder, at=tmp_path)
    assert done.returncode == Exit.PLUGIN, done.stderr
    assert "Traceback" not in done.stderr
    at = folder / "flexvae_layers_gain/plugin.py"
    for line in (
        f"mend: plugin: imports: loading it imports torch, for which every command then waits; "
        f"import it in the factories ({at}:3)",
        "mend: plugin: global state: loading it changes the environment",
        "mend: plugin: global state: loading it changes torch's default dtype",
        f"mend: layer Bare: docs: the docstring has no summary line ({at}:12)",
        f"mend: layer Bare: docs: the parameter slope has no help under Args: ({at}:12)",
        f"mend: layer Seeds: seeding: Seeds: it seeds torch's random numbers, which then are the same in every step "
        f"({at}:19)",
        "mend: layer Thing: examples: Thing: does not run: TypeError: the factory makes a function, not a torch module",
        "advice: layer Branch: torch.export: Branch: torch.export: ",
    ):
        assert line in done.stdout, done.stdout
    assert "mend: layer Branch" not in done.stdout
    assert done.stdout.splitlines()[-1] == f"{NAME} 0.1.0: 5 to mend"


def test_a_plugin_that_ends_the_process_is_a_finding(tmp_path):
    folder = write(tmp_path)
    (folder / "flexvae_layers_gain/plugin.py").write_text("import os\n\nos._exit(5)\n")
    done = python("-m", "flexvae_cli", "plugins", "check", folder, "--json", at=tmp_path)
    assert done.returncode == Exit.PLUGIN
    assert json.loads(done.stdout)["findings"][0]["says"] == [
        "the process that checks it ends with code 5: it says nothing"
    ]


def test_what_a_plugin_writes_to_stdout_is_no_result(tmp_path):
    folder = write(tmp_path)
    code = folder / "flexvae_layers_gain/plugin.py"
    late = 'atexit.register(os.write, 1, b"late")'
    code.write_text(code.read_text() + f"import atexit, os\n\nos.write(1, b'noise')\nprint('more')\n{late}\n")
    done = python("-m", "flexvae_cli", "plugins", "check", folder, "--json", at=tmp_path)
    assert "layer Gain" in {each["subject"] for each in json.loads(done.stdout)["findings"]}


def test_a_plugin_that_never_ends_is_a_finding(tmp_path, monkeypatch):
    folder = write(tmp_path)
    (folder / "flexvae_layers_gain/plugin.py").write_text("import time\n\ntime.sleep(60)\n")
    monkeypatch.setattr(kit_check, "LONGEST", 3)
    with found(str(folder)) as plugin:
        (finding,) = kit_check.check(plugin)
    assert (finding.state, finding.says) == ("mend", ("the process that checks it goes on after 3 s",))


def test_a_plugin_without_an_entry_point_is_told_what_to_write(tmp_path):
    (found,) = findings("pip")
    assert found.state == "mend"
    assert "[project.entry-points.flexvae]\npip = " in found.says[0]


def test_what_is_not_tried_is_told():
    @loss("Files")
    def files(path_of_mine: str):
        """Wants a value.

        Args:
            path_of_mine: a word.
        """

    for spec, call in (
        (files, "check_loss(spec, path_of_mine=...)"),
        (reader("Files")(files.factory), "check_reader(spec, FILE, LIKE, path_of_mine=...)"),
        (callback("Files")(files.factory), "check_callback(spec, path_of_mine=...)"),
    ):
        (skipped,) = of_spec(spec)
        assert (skipped.state, skipped.check) == ("skipped", "contract")
        assert call in skipped.says[0]
        assert hasattr(testing, f"check_{spec.kind}")


def test_readers_are_tried():
    @reader("Nothing")
    def nothing():
        """Makes no reader."""

    told = {each.check: each for each in of_spec(nothing)}
    assert told["files"].state == "mend"
    assert told["files"].says == ("the factory makes a NoneType, not a Reader",)
    assert {each.state for spec in builtin.flexvae_datasets() for each in of_spec(spec)} == {"ok"}


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("Flexvae_Sine", "", ["the name 'Flexvae_Sine' is none", "as in flexvae-sine"]),
        ("../evil", "", ["the name '../evil' is none"]),
        ("", "", ["the name '' is none", "as in flexvae-layers-sine"]),
        ("json", "", ["the name 'json' is one of Python's own", "as in flexvae-json"]),
        ("class", "", ["is one of Python's own"]),
        ("torch", "", ["a package 'torch' is installed already"]),
        ("flexvae-layers-extra", "", ["a package 'flexvae_layers_extra' is installed already"]),
        ("flexvae-layers", "", ["the code '' wants to be", "--code"]),
        ("flexvae-3d", "", ["the code '3D' wants to be", "--code"]),
        ("flexvae-mish", "", ["the code 'Mish' is taken by flexvae-layers-extra"]),
        ("flexvae-my", "C2d", ["the code 'C2d' is taken by flexvae"]),
        ("Bad_Name", "A_B", ["the name 'Bad_Name' is none", "the code 'A_B' wants to be"]),
    ],
)
def test_names_that_will_not_do_are_refused_all_at_once(name, code, words):
    with pytest.raises(UsageError) as refused:
        names_of(name, code, installed().registry)
    for word in words:
        assert word in str(refused.value)


def test_a_name_makes_the_names_of_the_parts():
    fields = names_of("flexvae-layers-snake-pit", "", installed().registry).fields()
    assert fields["package"] == "flexvae_layers_snake_pit"
    assert (fields["code"], fields["function"], fields["entry"]) == ("SnakePit", "snake_pit", "snake-pit")


def test_nothing_is_written_over(tmp_path, flexvae, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / NAME).mkdir()
    assert flexvae("plugins", "new", NAME).exit_code == 0  # an empty folder is as good as none
    before = (tmp_path / NAME / "README.md").read_bytes()
    again = flexvae("plugins", "new", NAME)
    assert again.exit_code == Exit.USAGE
    assert again.stderr.startswith(f"error: {NAME}: is there already")
    (tmp_path / "file").write_text("mine")
    assert flexvae("plugins", "new", NAME, "file").exit_code == Exit.USAGE
    assert "is the working directory" in flexvae("plugins", "new", NAME, ".").stderr
    assert (tmp_path / NAME / "README.md").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", NAME]


def test_what_is_no_plugin_is_told_apart(tmp_path, flexvae):
    told = flexvae("plugins", "check", "flexvae-layers-extr")
    assert told.exit_code == Exit.USAGE
    assert "no distribution of that name is installed; did you mean 'flexvae-layers-extra'" in told.stderr
    assert "there is no pyproject.toml in it" in flexvae("plugins", "check", tmp_path).stderr
    for text, words in {
        "[project\n": "is not TOML",
        "[tool.x]\n": "has no [project] with a name",
        '[project]\nname = "../up"\n': "has no [project] with a name",
        '[project]\nname = "a"\nentry-points = "b"\n': "wants entry points as in",
        '[project]\nname = "a"\nentry-points.flexvae = ["b"]\n': "wants entry points as in",
        '[project]\nname = "a"\nentry-points.flexvae.b = 3\n': "wants entry points as in",
        '[project]\nname = "a"\nversion = "1/2"\n': "pyproject.toml: has a version that is none: '1/2'",
        '[project]\nname = "a"\nversion = 1\n': "has a version that is none: 1",
    }.items():
        (tmp_path / "pyproject.toml").write_text(text)
        assert words in flexvae("plugins", "check", tmp_path).stderr


def test_code_below_src_is_found_and_nothing_is_left_behind(tmp_path):
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "One_Two"\n')
    (tmp_path / "src").mkdir()
    with found(str(tmp_path)) as plugin:
        stage, *code = plugin.folders
        assert code == [tmp_path / "src", tmp_path]
        assert [path.name for path in stage.iterdir()] == ["one_two-0.dist-info"]
    assert not stage.exists()


def test_options_of_the_list_do_not_stand_before_a_subcommand(flexvae, tmp_path):
    told = flexvae("plugins", "--json", "check", tmp_path)
    assert told.exit_code == Exit.USAGE
    assert "--json stands before 'check'" in told.stderr
