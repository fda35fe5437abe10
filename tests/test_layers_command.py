"""`flexvae layers`, and the page that is generated from the same declarations."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from flexvae_cli import plugins
from flexvae_cli.api import layer, loss, same
from flexvae_cli.errors import UsageError
from flexvae_cli.layers_reference import reference
from flexvae_cli.main import app
from flexvae_cli.registry import CORE, Registered, Registry

ROOT = Path(__file__).parents[1]
SEVEN = {"C2d", "VAERB", "VAEA", "GN", "SiLU", "MaxP", "UpS"}


def layers(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["layers", *arguments])


def names(*arguments: str) -> dict[str, list[str]]:
    result = layers(*arguments, "--json")
    assert result.exit_code == 0
    return {kind: [spec["name"] for spec in specs] for kind, specs in json.loads(result.stdout).items()}


def test_everything_is_listed_by_kind():
    found = names()
    assert set(found) == {"layers", "bottlenecks", "losses", "readers", "callbacks"}
    assert found["readers"] == ["arrays", "audio", "images", "latents", "volumes"]
    assert found["callbacks"] == ["csv"]
    assert set(found["layers"]) >= SEVEN
    assert set(found["bottlenecks"]) >= {"KL", "None"}
    assert "mse" in found["losses"]


def test_the_table_has_a_row_for_each_code():
    output = layers().stdout
    rows = {line.split()[0]: line for line in output.splitlines() if line.strip()}
    assert set(rows) >= SEVEN | {"KL", "mse"}
    assert "in-channels_out-channels_kernel-size_[stride=1]_[padding=0]_... " in rows["C2d"]
    assert "2-D convolution." in rows["C2d"]
    assert "flexvae 0" in rows["C2d"]
    assert "2-D" in rows["VAERB"]
    assert "any" in rows["MaxP"]
    assert "any" in rows["SiLU"]


def test_a_callback_is_explained_with_the_table_that_switches_it_on():
    told = layers("csv").stdout
    assert "usage: [callbacks.csv]" in told
    assert "comma or semicolon or tab" in told


def test_a_reader_is_explained_with_the_key_that_names_it():
    told = layers("audio").stdout
    assert told.startswith("audio (reader): Sound")
    assert 'usage: [data] reader = "audio"' in told
    assert "for 1-D data" in told


def test_a_pattern_chooses():
    chosen = names("VAE*")
    assert chosen.pop("layers") == ["VAEA", "VAERB", "VAERB1d", "VAERB3d"]
    assert not any(chosen.values())
    output = layers("VAE*").stdout
    assert "VAERB" in output
    assert "C2d" not in output


def test_a_code_in_full():
    output = layers("C2d").stdout
    assert output.startswith("C2d (layer): 2-D convolution.\n")
    assert "usage: C2d_in-channels_out-channels_kernel-size_[stride=1]_[padding=0]_[dilation=1]" in output
    for words in ("a whole number, at least 1", "zeros or reflect or replicate or circular", "channels that come in."):
        assert words in output
    assert "C2d_8_8_3_4_0: 8x16x16 -> 8x4x4" in output
    assert "from flexvae 0" in output
    assert output.rstrip().endswith("for 2-D data")


def test_a_code_with_arguments_explains_its_name():
    assert layers("C2d_3_8_3_1_1").stdout == layers("C2d").stdout


def test_a_loss_is_explained_too():
    output = layers("huber").stdout
    assert output.startswith("huber (loss): Huber loss")
    assert "usage: huber_[delta=1]" in output


def test_a_code_as_json():
    found = json.loads(layers("MaxP", "--json").stdout)
    (spec,) = found["layers"]
    assert [param["name"] for param in spec["parameters"]] == ["kernel-size", "stride", "padding"]
    assert spec["parameters"][0]["required"] is True
    assert spec["parameters"][2]["default"] == "0"
    assert spec["dims"] is None
    assert spec["static_rule"] is True
    assert {"code": "MaxP_2", "input": [3, 8, 6], "output": [3, 4, 3]} in spec["examples"]
    assert (spec["distribution"], found["losses"]) == ("flexvae", [])


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("C2s", "unknown layer 'C2s'; did you mean 'C2d'"),
        ("hubber", "unknown code 'hubber'; did you mean 'huber'?"),
        ("Qqqqqq", "see them all with: flexvae layers"),
        ("zz*", "no code matches 'zz*'"),
        ("", "unknown layer ''"),
    ],
)
def test_an_unknown_code(code, words):
    result = layers(code)
    assert isinstance(result.exception, UsageError)
    assert words in str(result.exception)
    assert result.stdout == ""


def test_a_code_that_two_plugins_bring_shows_both(monkeypatch):
    spec = layer("Snake", trace=same)(lambda: None)
    entries = [Registered(spec, name, "1.0") for name in ("one", "two")]
    monkeypatch.setattr(plugins, "installed", lambda: plugins.Plugins((), Registry(entries)))
    result = layers("Snake")
    assert "from one 1.0" in result.stdout
    assert "from two 1.0" in result.stdout
    assert "several plugins bring 'Snake'" in result.stderr


def test_a_loss_tells_its_reduction(monkeypatch):
    assert "reduction: latent-sum (sum over a sample's latent elements, mean over samples)" in layers("kld").stdout
    assert "Reduction: element (mean over all elements of all samples). For 2-D data." in reference()
    found = json.loads(layers("ffl", "--json").stdout)["losses"][0]
    assert (found["reduction"], found["dims"]) == ("element", 2)

    @loss("Silent")
    def silent():
        """Says nothing of it."""

    registry = Registry([Registered(silent, "elsewhere", "1.0")])
    monkeypatch.setattr(plugins, "installed", lambda: plugins.Plugins((), registry))
    assert "reduction: unstated" in layers("Silent").stdout
    assert json.loads(layers("Silent", "--json").stdout)["losses"][0]["reduction"] is None


def test_neither_layers_nor_plugins_imports_torch():
    code = """
import sys
from flexvae_cli.main import app
for arguments in (["layers"], ["layers", "C2d"], ["plugins"]):
    app(arguments, standalone_mode=False)
print([name for name in ("torch", "numpy", "pydantic.main") if name in sys.modules and name != "pydantic.main"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_page_is_fresh():
    page = ROOT / "docs" / "layers.md"
    assert page.read_text("utf-8") == reference(), "run: python -m flexvae_cli.layers_reference > docs/layers.md"


def test_the_page_tells_all_of_ours_and_nothing_of_others():
    page = reference()
    registry = plugins.installed().registry
    for kind in ("layer", "bottleneck", "loss"):
        for entry in registry.all(kind):
            assert (f"\n### {entry.spec.name}\n" in page) == (entry.distribution == CORE)
            if entry.distribution == CORE:
                assert all(f"`{param.option}`" in page for param in entry.spec.params)
    assert "`dilation` *by name*" in page


def test_the_module_prints_the_page():
    command = [sys.executable, "-m", "flexvae_cli.layers_reference"]
    done = subprocess.run(command, capture_output=True, check=True)
    assert done.stdout.decode("utf-8") == reference()
