"""`flexvae inspect`: the table, the tree, JSON, pictures, and what it says where something is wrong."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from flexvae_cli import __version__
from flexvae_cli.api.trace import conv, group_norm
from flexvae_cli.commands.inspect import field, human
from flexvae_cli.errors import UsageError
from flexvae_cli.main import app

SEED = Path(__file__).parents[1] / "configs" / "structures"
NET = [
    "C2d_3_32_3_1_1",
    {"repeat": 2, "layers": [{"residual": ["GN_4_32", "C2d_32_32_3_1_1"]}, "MaxP_2"]},
    "2*SiLU",
    "C2d_32_8_3_4",
]


def inspect(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["inspect", *map(str, arguments)])


def rows(result: Result) -> list[list[str]]:
    """The cells of the table, by columns that two blanks part."""
    assert result.exit_code == 0, result.output
    lines = result.stdout.partition("\n\ninput")[0].splitlines()
    return [[cell for cell in line.split("  ") if cell.strip()] for line in lines]


@pytest.fixture
def net(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = Path("net.json")
    path.write_text(json.dumps(NET))
    return path


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("encoder.json").write_text('["C2d_3_8_4_4", "C2d_8_8_1"]')
    Path("decoder.json").write_text('["C2d_4_8_1", "UpS_4", "C2d_8_3_3_1_1"]')
    Path("flexvae.toml").write_text(
        '[model]\nencoder = "encoder.json"\ndecoder = "decoder.json"\n'
        '[data]\nsource = "builtin:scenery"\ninput = "3x32x32"\n[train]\nrun_dir = "run"\nmax_steps = 1\n'
    )
    return Path("flexvae.toml")


def test_the_table_of_a_structure(net):
    result = inspect(net, "--input", "3x64x64")
    cells = [[cell.strip() for cell in row] for row in rows(result)]
    row = {each[0]: each[1:] for each in cells if each}
    assert row["#"] == ["code", "in", "out", "layer", "parameters", "share", "MACs", "field", "note"]
    assert row["0"] == ["C2d_3_32_3_1_1", "3x64x64", "32x64x64", "2-D convolution", "896", "4.1 %", "3.54 M", "3"]
    assert row["1"] == ["residual", "32x64x64", "32x64x64", "Sum of body and shortcut", "5*"]
    assert row["3.body.1"][4:] == ["9,248", "42.4 %", "9.44 M", "10*"]
    assert row["7"][-1] == "1"
    macs = 9 * (3 * 32 * 64**2 + 32 * 32 * (64**2 + 32**2) + 32 * 8 * 4**2)
    assert row["total"] == [f"{896 + 2 * (64 + 9248) + 2312:,}", "100 %", f"{macs / 1e6:.1f} M"]
    assert "input 3x64x64 -> output 8x4x4\n" in result.stdout
    assert "* and the means and variances that norms take over the whole input" in result.stdout
    assert "note 1: the stride 4 is larger than the kernel 3" in result.stdout
    assert "(layer 7)" in result.stdout


def test_what_is_assumed_is_said(net):
    assert "input 3x256x256 (assumed; choose with --input) -> output 8x16x16" in inspect(net).stdout


def test_a_config_shows_three_parts_and_the_latent(config):
    result = inspect(config)
    firsts = [row[0].strip() for row in rows(result) if row]
    assert [first for first in firsts if first.isalpha()] == ["part", "encoder", "bottleneck", "decoder", "total"]
    assert "latent 4x8x8 (12 times fewer numbers)" in result.stdout
    assert "takes sizes that 4x4 divides" in result.stdout
    assert "note" not in result.stdout


def test_without_a_target_the_config_of_the_working_directory(config):
    assert inspect().stdout == inspect(config).stdout


def test_overrides_reach_the_config(config):
    Path("wide.json").write_text('["C2d_8_8_1", "UpS_4", "C2d_8_3_3_1_1"]')
    result = inspect(config, "--set", "model.bottleneck=None", "--set", "model.decoder=wide.json")
    assert "latent 8x8x8" in result.stdout


def test_the_seeds_net_as_json():
    found = json.loads(inspect(SEED / "encoder.json", "--json").stdout)
    assert found["parameters"] == 8_440_272
    assert len(found["parts"][0]["rows"]) == 16
    assert found["input_assumed"] is True


def test_the_tree_keeps_entries_as_they_are_written(net):
    result = inspect(net, "--tree", "--input", "3x64x64")
    entries = result.stdout.partition("\n\ninput")[0].splitlines()[2:]
    names = [line[: len(line) - len(line.lstrip())] + line.split()[0] for line in entries]
    assert names[:4] == ["structure", "  C2d_3_32_3_1_1", "  repeat", "    residual"]
    assert names[4:] == ["      GN_4_32", "      C2d_32_32_3_1_1", "    MaxP_2", "  2*SiLU", "  C2d_32_8_3_4"]
    repeat = next(line for line in entries if "repeat 2" in line)
    assert repeat.split()[2:5] == ["32x64x64", "32x16x16", f"{2 * (9248 + 64):,}"]
    residual = next(line for line in entries if "residual" in line)
    assert residual.split()[1:3] == ["32x64x64", "32x64x64"]


def test_the_tree_of_a_config_and_of_a_shortcut(config):
    Path("encoder.json").write_text('["C2d_3_8_4_4", {"residual": ["SiLU"], "shortcut": ["C2d_8_8_1"]}]')
    entries = inspect(config, "--tree").stdout
    assert "  shortcut" in entries
    assert "encoder  encoder.json" in entries
    assert "  KL " in entries


def test_a_picture_is_told_on_stderr_and_leaves_json_whole(net):
    result = inspect(net, "--json", "--image", "net.svg")
    assert json.loads(result.stdout)["kind"] == "structure"
    assert result.stderr == "drew net.svg\n"
    assert Path("net.svg").read_text().startswith("<?xml")


def test_a_picture_of_another_kind_is_a_usage_error(net):
    result = inspect(net, "--image", "net.gif")
    assert isinstance(result.exception, UsageError)
    assert not Path("net.gif").exists()


def test_a_narrow_terminal_drops_columns_and_keeps_codes(net, monkeypatch):
    wide = inspect(net).stdout
    monkeypatch.setenv("COLUMNS", "80")
    narrow = inspect(net).stdout
    header = narrow.splitlines()[0]
    assert max(map(len, narrow.partition("\n\ninput")[0].splitlines())) <= 80
    assert "layer" in wide.splitlines()[0]
    assert "layer" not in header
    assert {"code", "out", "parameters", "MACs", "field"} <= set(header.split())
    assert "C2d_32_32_3_1_1" in narrow
    monkeypatch.setenv("COLUMNS", "20")
    assert inspect(net).exit_code == 0


def test_every_problem_exits_with_2_and_no_table(tmp_path):
    path = tmp_path / "bad.json"
    path.write_text('["C2d_3_8_3", "C2s_8_8_3", "GN_3_8"]')
    done = subprocess.run(
        [sys.executable, "-m", "flexvae_cli", "inspect", path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("error:") == 2
    assert "did you mean 'C2d'" in done.stderr
    assert "num-groups 3 does not divide num-channels 8" in done.stderr


def test_the_config_option_is_another_word_for_the_target(config):
    assert inspect("--config", config).stdout == inspect(config).stdout
    both = inspect(config, "--config", config)
    assert isinstance(both.exception, UsageError)
    assert "two things to show" in str(both.exception)


def test_a_model_tells_what_it_was_made_with(make_model, tmp_path):
    run = make_model(tmp_path / "run", flexvae="0.7")
    result = inspect(run)
    assert result.exit_code == 0, result.output
    assert f"made by flexvae 0.7; its codes come from flexvae {__version__}\n" in result.stdout
    assert json.loads(inspect(run, "--json").stdout)["plugins"] == {"flexvae": __version__}


def test_a_newer_damaged_checkpoint_is_passed_over_aloud(make_model, tmp_path):
    run = make_model(tmp_path / "run")
    newer = shutil.copytree(run / "ckpt/step-00000000", run / "ckpt/step-00000001")
    (newer / "model.safetensors").write_bytes(b"")
    result = inspect(run, "--json")
    assert json.loads(result.stdout)["target"].endswith("step-00000000")
    assert result.stderr.startswith("warning: passed over: ")
    done = subprocess.run(
        [sys.executable, "-m", "flexvae_cli", "inspect", newer], capture_output=True, text=True, check=False
    )
    assert done.returncode == 4
    assert "damaged or replaced" in done.stderr


@pytest.mark.parametrize("where", ["", "ckpt/step-00000000/model.safetensors"])
def test_a_model_is_shown_without_torch(tiny_model, where):
    code = """
import sys
from flexvae_cli.main import app
app(sys.argv[1:], standalone_mode=False)
print([name for name in ("torch", "numpy", "safetensors") if name in sys.modules])
"""
    command = [sys.executable, "-c", code, "inspect", str(tiny_model / where), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_whole_command_does_without_torch():
    code = """
import sys
from flexvae_cli.main import app
app(sys.argv[1:], standalone_mode=False)
print("torch" in sys.modules)
"""
    command = [sys.executable, "-c", code, "inspect", str(SEED / "encoder.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_an_ascii_terminal(net, tmp_path):
    command = [sys.executable, "-m", "flexvae_cli", "inspect", str(net.resolve())]
    environment = {"PYTHONIOENCODING": "ascii", "COLUMNS": "78", "PATH": ""}
    done = subprocess.run(command, capture_output=True, env=environment, check=True)
    assert done.stdout.isascii()
    assert b"C2d_32_32_3_1_1" in done.stdout


def test_a_receptive_field_in_few_words():
    shape = (4, 9, 9)
    assert field(conv(4, 4, 3)(shape).reach) == "3"
    assert field(conv(4, 4, (3, 5))(shape).reach) == "3x5"
    assert field(group_norm(2, 4)(shape).reach) == "1*"


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1 k"),
        (9999, "10 k"),
        (999_600, "1 M"),
        (49_539_465_216, "49.5 G"),
        (10**22, "1e+04 E"),
    ],
)
def test_a_large_number_in_few_digits(number, words):
    assert human(number) == words
