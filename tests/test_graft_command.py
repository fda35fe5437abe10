"""`flexvae graft`: a bundle that every command reads and that training starts from."""

from __future__ import annotations

import json
import re

import pytest

from flexvae_cli import load_model
from flexvae_cli.errors import Exit

ENCODER = ["C2d_3_8_3_2_1", "SiLU", "C2d_8_8_3_1_1", "C2d_8_4_3_2_1"]  # one layer more than the tiny model's
WIDER = ["C2d_2_16_3_1_1", "SiLU", "UpS_4", "C2d_16_3_3_1_1"]


@pytest.fixture
def structures(tmp_path):
    for name, document in (("encoder", ENCODER), ("decoder", WIDER)):
        (tmp_path / f"{name}.json").write_text(json.dumps(document))
    return tmp_path / "encoder.json", tmp_path / "decoder.json"


def test_a_grafted_model_is_a_model(flexvae, tiny_model, structures, photos, tmp_path):
    bundle = tmp_path / "bundle"
    done = flexvae("graft", tiny_model, *structures, "-o", bundle, "--data", photos, "--json")
    assert done.exit_code == 0, done.stderr
    report = json.loads(done.stdout)
    assert [each["action"] for each in report["layers"]].count("identity") == 1
    assert report["moved"]["data"] == str(photos)
    assert report["moved"]["latent"]["relative_l2"] < 1e-6
    assert report["moved"]["reconstruction"]["relative_l2"] < 1e-6
    assert flexvae("infer", bundle, photos, tmp_path / "out").exit_code == 0
    assert flexvae("inspect", bundle).exit_code == 0
    description = load_model(bundle).description
    assert description["grafted_from"] == load_model(tiny_model).weights_hash
    assert description["encoder"] == ENCODER


def test_training_starts_from_it(flexvae, tiny_model, structures, photos, tmp_path):
    assert flexvae("graft", tiny_model, *structures, "-o", tmp_path / "bundle").exit_code == 0
    config = tmp_path / "flexvae.toml"
    config.write_text(
        f"""
[model]
encoder = "{structures[0]}"
decoder = "{structures[1]}"
init = "{tmp_path / "bundle"}"
[data]
source = "{photos}"
input = "3x16x16"
validation = 0
workers = 0
[train]
run_dir = "{tmp_path / "run"}"
max_steps = 1
batch_size = 2
device = "cpu"
"""
    )
    done = flexvae("train", "--config", config)
    assert done.exit_code == 0, done.stderr
    assert "starting from the weights of" in done.stderr + (tmp_path / "run" / "log.txt").read_text()
    again = flexvae("graft", tiny_model, "--config", config, "-o", tmp_path / "again", "--json")
    assert again.exit_code == 0, again.stderr
    assert json.loads(again.stdout)["input"] == [3, 16, 16]


def test_the_table_says_what_was_done(flexvae, tiny_model, structures, tmp_path):
    done = flexvae("graft", tiny_model, structures[0], "-o", tmp_path / "bundle")
    assert done.exit_code == 0, done.stderr
    assert "2 C2d_8_8_3_1_1 identity 0 of 584" in re.sub(r"\W+", " ", done.stdout)
    assert "latent: moved by" in done.stdout
    assert "random numbers" in done.stdout


def test_what_is_no_model(flexvae, structures, tmp_path):
    (tmp_path / "empty").mkdir()
    for source in (tmp_path / "nothing", tmp_path / "empty"):
        assert flexvae("graft", source, structures[0], "-o", tmp_path / "bundle").exit_code == Exit.MODEL
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ((), Exit.USAGE, "wants the edited structures"),
        (("bad.json",), Exit.USAGE, "takes 5 channels, but 8 come in"),
        (("encoder.json", "bad.json"), Exit.USAGE, "come in"),
        (("encoder.json", "--bottleneck", "None"), Exit.USAGE, "takes 2 channels, but 4 come in"),
        (("encoder.json", "--data", "nowhere"), Exit.DATA, "no such file"),
        (("encoder.json", "--config", "c.toml"), Exit.USAGE, "wants the edited structures"),
    ],
)
def test_what_does_not_fit(flexvae, tiny_model, structures, tmp_path, monkeypatch, arguments, code, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.json").write_text('["C2d_3_8_3_2_1", "C2d_5_4_3_2_1"]')
    done = flexvae("graft", tiny_model, *arguments, "-o", "bundle")
    assert done.exit_code == code, done.stderr
    assert said in done.stderr
    assert not (tmp_path / "bundle").exists()


def test_nothing_is_overwritten(flexvae, tiny_model, structures, tmp_path):
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "mine").write_text("mine")
    assert flexvae("graft", tiny_model, structures[0], "-o", tmp_path / "bundle").exit_code == Exit.USAGE
    assert flexvae("graft", tiny_model, structures[0]).exit_code == Exit.USAGE
    assert [path.name for path in (tmp_path / "bundle").iterdir()] == ["mine"]
