from __future__ import annotations

import json
import shutil

import pytest
import torch

from flexvae_cli import load_model
from flexvae_cli.errors import Exit


def test_a_bundle_does_what_its_run_does(flexvae, tiny_model, tmp_path):
    result = flexvae("export", tiny_model, tmp_path / "model", "--json")
    assert result.exit_code == 0, result.stderr
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == ["model.json", "model.safetensors"]
    moved = tmp_path / "elsewhere"
    shutil.move(tmp_path / "model", moved)
    run, bundle = load_model(tiny_model), load_model(moved)
    x = torch.rand(1, 3, 9, 14) * 2 - 1
    assert torch.equal(run(x), bundle(x))
    assert run.weights_hash == bundle.weights_hash == json.loads(result.stdout)["weights_hash"]


def test_export_says_what_the_bundle_holds(flexvae, tiny_model, tmp_path):
    result = flexvae("export", tiny_model, tmp_path / "model")
    for words in ("takes 3x16x16", "bottleneck KL", "flexvae", "model.safetensors", "bytes"):
        assert words in result.stdout
    about = json.loads(flexvae("export", tiny_model, tmp_path / "two", "--json").stdout)
    assert about["files"]["model.json"] == (tmp_path / "two" / "model.json").stat().st_size


def test_a_bundle_and_a_checkpoint_can_be_exported_again(flexvae, tiny_model, tmp_path):
    assert flexvae("export", tiny_model / "ckpt" / "step-00000000", tmp_path / "one").exit_code == 0
    assert flexvae("export", tmp_path / "one", tmp_path / "two").exit_code == 0
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two")]
    assert weights[0] == weights[1]


def test_what_is_there_is_never_overwritten(flexvae, tiny_model, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    for target in (tmp_path, tmp_path / "mine.txt"):
        assert flexvae("export", tiny_model, target).exit_code == Exit.USAGE
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("kind", ["nothing", "an empty folder", "a damaged model"])
def test_what_is_no_model_is_not_exported(flexvae, tiny_model, tmp_path, kind):
    source = tmp_path / "source"
    if kind == "an empty folder":
        source.mkdir()
    elif kind == "a damaged model":
        shutil.copytree(tiny_model / "ckpt" / "step-00000000", source)
        weights = source / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    assert flexvae("export", source, tmp_path / "out").exit_code == Exit.MODEL
    assert not (tmp_path / "out").exists()
