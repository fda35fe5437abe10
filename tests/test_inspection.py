"""What inspect knows of a target, against figures worked out by hand and the seed's own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from flexvae_cli import __version__, plugins
from flexvae_cli.api import layer
from flexvae_cli.engine.modelfiles import find_model
from flexvae_cli.errors import ModelError, UsageError
from flexvae_cli.inspection import inspect_config, inspect_target, read_shape, short
from flexvae_cli.inspection.assumed_input import assumed_input
from flexvae_cli.inspection.document import document
from flexvae_cli.registry import Registered, Registry
from flexvae_cli.structure import parse_structure

ROOT = Path(__file__).parents[1]
STRUCTURES = ROOT / "configs" / "structures"
RESIDUAL = [
    "C2d_3_8_3_1_1",
    {"residual": ["C2d_8_8_3_1_1", {"residual": ["SiLU"]}], "shortcut": ["C2d_8_8_1"]},
    {"repeat": 2, "layers": ["SiLU", "MaxP_2"]},
]
CONFIG = """
[model]
encoder = "encoder.json"
decoder = "decoder.json"
[data]
source = "builtin:scenery"
input = "3x32x32"
[train]
run_dir = "run"
max_steps = 1
"""


@pytest.fixture
def write(tmp_path):
    def file(value: object, name: str = "net.json") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(value if isinstance(value, str) else json.dumps(value))
        return path

    return file


@pytest.fixture
def config(write):
    write(["C2d_3_8_4_4", "C2d_8_8_1"], "encoder.json")
    write(["C2d_4_8_1", "UpS_4", "C2d_8_3_3_1_1"], "decoder.json")
    return write(CONFIG, "small.toml")


def test_a_structure_layer_by_layer(write):
    found = inspect_target(write(["C2d_3_8_3_2_1", "SiLU", "2*C2d_8_8_1"]), (3, 10, 8))
    lines = found.parts[0].lines
    assert [(line.key, line.code) for line in lines] == [
        ("0", "C2d_3_8_3_2_1"), ("1", "SiLU"), ("2", "C2d_8_8_1"), ("3", "C2d_8_8_1"),
    ]  # fmt: skip
    assert [line.gives for line in lines] == [(8, 5, 4)] * 4
    assert [line.parameters for line in lines] == [3 * 8 * 9 + 8, 0, 72, 72]
    assert lines[0].macs == 3 * 8 * 9 * 5 * 4
    assert lines[0].layer == "2-D convolution"
    assert (found.kind, found.assumed, found.latent, found.parameters) == ("structure", False, None, 368)


def test_the_seeds_nets_have_the_seeds_parameters():
    assert inspect_target(STRUCTURES / "encoder.json").parameters == 8_440_272
    assert inspect_target(STRUCTURES / "decoder.json").parameters == 32_965_399


def test_a_residual_entry_has_a_line_before_its_layers(write):
    lines = {line.key: line for line in inspect_target(write(RESIDUAL), (3, 16, 16)).parts[0].lines}
    assert list(lines) == ["0", "1", "1.body.0", "1.body.1", "1.body.1.body.0", "1.shortcut.0", "2", "3", "4", "5"]
    assert (lines["1"].code, lines["1"].takes, lines["1"].gives) == ("residual", (8, 16, 16), (8, 16, 16))
    assert lines["1"].parameters == 0
    assert lines["1"].reach.field == lines["1.body.0"].reach.field == (5, 5)
    assert lines["1.shortcut.0"].reach.field == (3, 3)
    assert lines["5"].reach.field == (8, 8)


@pytest.mark.parametrize(
    ("entries", "shape"),
    [
        (["C2d_3_8_3_1_1"], (3, 256, 256)),
        (["SiLU", "GN_4_16"], (16, 256, 256)),
        (["SiLU"], (3, 256, 256)),
        (["C2d_4_8_1", "UpS_4", "UpS_2"], (4, 32, 32)),
        ([{"residual": ["C2d_5_5_1"]}], (5, 256, 256)),
        (["C2d_3_8_1", "C2d_8_8_3_500"], (3, 256, 256)),
        (["C2d_4_8_1", "UpS_4", "MaxP_4", "MaxP_4"], (4, 256, 256)),
    ],
)
def test_the_assumed_input(entries, shape):
    assert assumed_input(parse_structure(entries, plugins.installed().registry, "net")) == shape


def test_an_assumed_size_is_a_little_smaller_where_256_does_not_fit(monkeypatch, write):
    from flexvae_cli.api import unshuffle

    by_three = layer("By3", dims=2, trace=lambda: unshuffle(3))(lambda: None)
    with_specs(monkeypatch, by_three)
    assert inspect_target(write(["By3"])).shape == (3, 240, 240)


def with_specs(monkeypatch, *specs):
    """Install specs beside those of the environment."""
    registry = plugins.installed().registry
    entries = [entry for kind in ("layer", "bottleneck", "loss") for entry in registry.all(kind)]
    loaded = plugins.Plugins((), Registry([*entries, *(Registered(spec, "flexvae-test", "1.0") for spec in specs)]))
    monkeypatch.setattr(plugins, "installed", lambda: loaded)


@layer("Lin")
def linear(channels: int):
    """Mixes channels; it has no static rule.

    Args:
        channels: channels that come in and go out.
    """
    from torch import nn

    return nn.Conv2d(channels, channels, 1)


def test_a_layer_without_a_rule_is_measured_and_says_so(monkeypatch, write):
    with_specs(monkeypatch, linear)
    found = inspect_target(write(["C2d_3_8_1", "2*Lin_8"]), (3, 4, 4))
    rows = document(found)["parts"][0]["rows"]
    assert [row["measured"] for row in rows] == [False, True, True]
    assert [row["parameters"] for row in rows] == [32, 72, 72]
    (note,) = [note for note in found.notes if "measured on the meta device" in note.text]
    assert note.places == (("structure", "1"), ("structure", "2"))


def test_a_config_is_followed_through_all_three_parts(config):
    found = inspect_target(config)
    assert [part.name for part in found.parts] == ["encoder", "bottleneck", "decoder"]
    assert (found.kind, found.shape, found.latent, found.gives) == ("config", (3, 32, 32), (4, 8, 8), (3, 32, 32))
    assert found.compression == 12
    assert found.multiples == (4, 4)
    assert found.parts[2].lines[-1].reach.field in ((8, 8), (9, 9))  # two latents, of four pixels each
    assert found.notes == ()


def test_overrides_and_another_input(config, write):
    wide = write(["C2d_8_8_1", "UpS_4", "C2d_8_3_1"], "wide.json")
    found = inspect_target(config, (3, 8, 16), ["model.bottleneck=None", f"model.decoder={wide}"])
    assert (found.latent, found.gives) == ((8, 2, 4), (3, 8, 16))


def test_a_size_that_does_not_come_back_is_pointed_out(config):
    found = inspect_target(config, (3, 30, 32))
    assert found.gives == (3, 28, 32)
    texts = [note.text for note in found.notes]
    assert any("the input 30x32 is not covered" in text for text in texts)
    assert texts[-1].startswith("the decoder gives 3x28x32, the encoder takes 3x30x32: to train, choose 32x32")
    assert found.multiples == (4, 4)


def test_other_channels_are_pointed_out(config, write):
    write(["C2d_4_1_1", "UpS_4"], "decoder.json")
    found = inspect_target(config)
    assert found.notes[-1].text.endswith("the channels must be the same to train")
    assert found.multiples is None


def test_a_decoder_of_another_size_is_pointed_out(config, write):
    write(["C2d_4_3_1", "UpS_2"], "decoder.json")
    assert inspect_target(config).notes[-1].text.endswith("no size near it comes back as large as it went in")


def test_equal_notes_are_one_with_all_places(write):
    (note,) = inspect_target(write(["C2d_3_8_3_4", "C2d_8_8_1", "C2d_8_8_3_4"]), (3, 64, 64)).notes
    assert "the stride 4 is larger than the kernel 3" in note.text
    assert note.places == (("structure", "0"), ("structure", "2"))


def test_all_that_does_not_fit_is_told_at_once(write):
    with pytest.raises(UsageError) as caught:
        inspect_target(write(["C2d_3_8_1", "C2d_4_8_1", "GN_2_6"]))
    assert [p.where.rpartition("/")[2] for p in caught.value.problems] == ["net.json[1]", "net.json[2]"]
    assert "the input 3x256x256 was assumed; choose one with --input" in caught.value.problems[-1].hint


def test_problems_with_a_given_input_do_not_speak_of_an_assumed_one(write):
    with pytest.raises(UsageError) as caught:
        inspect_target(write(["C2d_3_8_1"]), (4, 8, 8))
    assert "assumed" not in str(caught.value)


@pytest.fixture
def run(make_model, tmp_path):
    """A run with checkpoints at steps 0 and 1."""
    run = make_model(tmp_path / "run", flexvae="0.1")
    shutil.copytree(run / "ckpt/step-00000000", run / "ckpt/step-00000001")
    return run


@pytest.mark.parametrize(
    "where", ["", "ckpt", "ckpt/step-00000001", "ckpt/step-00000001/model.json", "ckpt/step-00000001/model.safetensors"]
)
def test_a_model_is_found_as_infer_finds_it(run, where):
    found = inspect_target(run / where)
    assert (found.kind, found.shape, found.latent) == ("model", (3, 16, 16), (2, 4, 4))
    assert found.target == str(run / "ckpt/step-00000001") == str(find_model(run / where).path)
    assert (found.flexvae, found.plugins) == ("0.1", {"flexvae": __version__})
    assert document(found)["flexvae"] == "0.1"
    assert document(found)["plugins"] == {"flexvae": __version__}


def test_a_damaged_checkpoint_is_passed_over_and_refused_by_itself(run):
    weights = run / "ckpt/step-00000001/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    found = inspect_target(run)
    assert found.target == str(run / "ckpt/step-00000000")
    assert found.model is not None
    assert [problem.where for problem in found.model.passed_over] == [str(weights)]
    with pytest.raises(ModelError, match="damaged or replaced"):
        inspect_target(weights)


def test_an_edited_description_is_refused(run):
    description = run / "ckpt/step-00000001/model.json"
    description.write_text(description.read_text().replace("C2d_3_8", "C2d_3_9"))
    with pytest.raises(ModelError, match="its seal does not match"):
        inspect_target(description)


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(ModelError, match="holds no model"):
        inspect_target(tmp_path)


def test_a_pickle_is_refused(write):
    with pytest.raises(ModelError, match="pickle refused"):
        inspect_target(write("x", "model.pt"))


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"input": [3, 8, 8], "encoder": "x"}'])
def test_a_damaged_description(write, content):
    with pytest.raises(ModelError, match=r"model\.json"):
        inspect_target(write(content, "bundle/model.json").parent)


def test_a_model_of_a_plugin_that_is_missing(make_model, tmp_path):
    with pytest.raises(ModelError, match="made with flexvae-zork 2"):
        inspect_target(make_model(tmp_path / "run", plugins={"flexvae-zork": "2"}))


def test_a_config_by_any_name(config):
    named = inspect_config(config.rename(config.with_name("config.txt")))
    assert (named.kind, named.latent, named.plugins) == ("config", (4, 8, 8), {"flexvae": __version__})


def test_no_target_and_no_config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"there is no flexvae\.toml here"):
        inspect_target(None)


def test_no_target_is_the_config_of_the_working_directory(config, monkeypatch):
    config.rename(config.parent / "flexvae.toml")
    monkeypatch.chdir(config.parent)
    assert inspect_target(None).kind == "config"


def test_a_target_that_is_not_there(tmp_path):
    with pytest.raises(UsageError, match="no such file or folder"):
        inspect_target(tmp_path / "none.json")


def test_set_is_for_configs(write):
    with pytest.raises(UsageError, match="--set changes the keys of a config"):
        inspect_target(write(["SiLU"]), overrides=["model.bottleneck=None"])


def test_a_mstruct_file_is_a_structure(write):
    assert inspect_target(write(["SiLU"], "old.mstruct")).kind == "structure"


@pytest.mark.parametrize(
    ("written", "shape"), [("3x256x256", (3, 256, 256)), ("1x9", (1, 9)), ("1x2x3x4", (1, 2, 3, 4))]
)
def test_a_shape_as_it_is_written(written, shape):
    assert read_shape(written) == shape


@pytest.mark.parametrize("written", ["3", "3x", "3x0x8", "3X8X8", "-3x8", "3x8x8x8x8", "٣x8", "3x9999999999"])
def test_what_is_no_shape(written):
    with pytest.raises(UsageError, match="--input wants channels x size"):
        read_shape(written)


@pytest.mark.parametrize(
    ("summary", "head"),
    [
        ("2-D convolution.", "2-D convolution"),
        ("Residual block: GroupNorm, twice", "Residual block"),
        ("Group normalisation (Wu and He)", "Group normalisation"),
        ("Scales by 0.5 and more. Then", "Scales by 0.5 and more"),
        ("Nearest-neighbour upsampling by a whole factor", "Nearest-neighbour upsampling ..."),
        ("", ""),
    ],
)
def test_a_summary_in_a_few_words(summary, head):
    assert short(summary) == head


def test_the_document_is_json_and_complete(config):
    found = json.loads(json.dumps(document(inspect_target(config)), allow_nan=False))
    rows = [row for part in found["parts"] for row in part["rows"]]
    assert sum(row["parameters"] for row in rows) == found["parameters"]
    assert sum(row["macs"] for row in rows) == found["macs"]
    assert sum(row["share"] for row in rows) == pytest.approx(1)
    assert found["bytes_fp32"] == 4 * found["parameters"]
    assert (found["input"], found["latent"], found["output"]) == ([3, 32, 32], [4, 8, 8], [3, 32, 32])
    assert rows[0]["receptive_field"] == [4, 4]


def test_attention_has_no_receptive_field(write):
    rows = document(inspect_target(write(["VAEA_32", "SiLU"]), (32, 4, 4)))["parts"][0]["rows"]
    assert [row["receptive_field"] for row in rows] == [None, None]


def test_a_structure_with_rules_needs_neither_torch_nor_pydantic():
    code = """
import sys
from pathlib import Path
from flexvae_cli.inspection import inspect_target
from flexvae_cli.inspection.document import document
document(inspect_target(Path(sys.argv[1])))
print([name for name in ("torch", "pydantic", "rich", "numpy") if name in sys.modules])
"""
    path = str(STRUCTURES / "encoder.json")
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
