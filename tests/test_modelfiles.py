"""Models are found, checked and exported."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch

from flexvae_cli.engine.checkpoint import save_checkpoint
from flexvae_cli.engine.files import CRASH_POINTS, remove_orphans
from flexvae_cli.engine.modelfiles import export_bundle, find_model, require_same_tensors, write_bundle
from flexvae_cli.errors import Exit, ModelError, UsageError

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")


def content(step: int) -> dict:
    generator = torch.Generator().manual_seed(step)
    weights = {f"layer.{i}.weight": torch.randn(8, 4, generator=generator) for i in range(2)}
    return {
        "weights": weights | {"codebook.count": torch.tensor(step)},
        "model": {"encoder": ["C2d_3_8_3_1_1"], "input": [3, 8, 8]},
        "training": {"optimizer.exp_avg": torch.randn(8, 4, generator=generator)},
        "state": {"lr": 1e-4 / (step + 1), "seed": 7, "config": {"train": {"lr": 0.0004}}},
    }


def save(run: Path, step: int, keep_last: int = 2) -> Path:
    return save_checkpoint(run, step, **content(step), keep_last=keep_last)


@pytest.fixture
def run(tmp_path) -> Path:
    """A run with checkpoints at steps 1 and 2."""
    save(tmp_path / "run", 1)
    save(tmp_path / "run", 2)
    return tmp_path / "run"


def test_an_edited_description_is_refused(run):
    file = run / "ckpt/step-00000002/model.json"
    file.write_text(file.read_text().replace("C2d_3_8", "C2d_3_9"))
    with pytest.raises(ModelError, match=r"model\.json: is damaged or was edited"):
        find_model(file.parent)


@pytest.mark.parametrize(
    "where", ["", "ckpt", "ckpt/step-00000002", "ckpt/step-00000002/model.safetensors", "ckpt/step-00000002/model.json"]
)
def test_find_model_takes_whatever_a_person_points_at(run, where):
    found = find_model(run / where)
    assert found.path == run / "ckpt/step-00000002"
    assert found.model == content(2)["model"]
    assert torch.equal(found.weights()["layer.0.weight"], content(2)["weights"]["layer.0.weight"])


def test_find_model_needs_the_model_alone_and_tells_what_it_passed_over(run):
    (run / "ckpt/step-00000002/training.safetensors").unlink()
    assert find_model(run).path.name == "step-00000002"
    (run / "ckpt/step-00000002/model.safetensors").write_bytes(b"")
    found = find_model(run)
    assert found.path.name == "step-00000001"
    assert [p.where for p in found.passed_over] == [str(run / "ckpt/step-00000002/model.safetensors")]


def test_find_model_says_what_is_there_instead(tmp_path):
    (tmp_path / "fresh" / "ckpt").mkdir(parents=True)
    (tmp_path / "photos").mkdir()
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "model.pt").write_bytes(b"x")
    (tmp_path / "cat.jpg").write_bytes(b"cat")
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "model.safetensors").write_bytes(b"x")
    for name, reason in {
        "fresh": "fresh: holds no checkpoint yet",
        "fresh/ckpt": "ckpt: holds no checkpoint yet",
        "photos": "photos: holds no model",
        "old": "pickle refused: model.pt can run any program",
        "cat.jpg": "cat.jpg: is not a model",
        "half": "model.json: is missing",
        "none": "none: no such file or directory",
    }.items():
        with pytest.raises(ModelError, match=reason) as caught:
            find_model(tmp_path / name)
        assert caught.value.code == Exit.MODEL


def test_a_bundle_verifies_by_itself(run, tmp_path):
    bundle = export_bundle(run, tmp_path / "out" / "bundle")
    assert sorted(p.name for p in bundle.path.iterdir()) == ["model.json", "model.safetensors"]
    assert [p.name for p in bundle.path.parent.iterdir()] == ["bundle"]
    shutil.rmtree(run)
    found = find_model(tmp_path / "out" / "bundle")
    assert found.model == content(2)["model"]
    assert torch.equal(found.weights()["layer.1.weight"], content(2)["weights"]["layer.1.weight"])
    file = bundle.path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\1")
    with pytest.raises(ModelError, match="sha256"):
        find_model(bundle.path)


def test_export_takes_a_new_or_an_empty_directory_only(run, tmp_path):
    (tmp_path / "empty").mkdir()
    export_bundle(run, tmp_path / "empty")
    (tmp_path / "file").write_bytes(b"mine")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for name in ("empty", "file", "link"):
        with pytest.raises(UsageError, match="is there already"):
            export_bundle(run, tmp_path / name)
    assert not (tmp_path / "elsewhere").exists()


def test_a_bundle_is_not_published_half(run, tmp_path, monkeypatch):
    for point in CRASH_POINTS[:5]:
        monkeypatch.setenv("FLEXVAE_CRASH_AT", f"{point}")
        if (child := os.fork()) == 0:
            export_bundle(run, tmp_path / "bundle")
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -9
        assert not (tmp_path / "bundle").exists()
    remove_orphans(tmp_path)
    monkeypatch.delenv("FLEXVAE_CRASH_AT")
    export_bundle(run, tmp_path / "bundle")


def test_weights_that_do_not_fit_are_told_all_at_once():
    wanted = {"a": torch.zeros(2, 3), "b": torch.zeros(1), "c": torch.zeros(1), "ok": torch.zeros(())}
    found = {"a": torch.zeros(3, 2), "b": torch.zeros(1).half(), "d": torch.zeros(1), "ok": torch.ones(())}
    require_same_tensors(wanted, wanted, Path("m"))
    with pytest.raises(ModelError) as caught:
        require_same_tensors(found, wanted, Path("m"))
    assert str(caught.value).splitlines() == [
        "m: lacks c",
        "m: has unknown d",
        "m: has another shape or type for a (3x2 float32, expected 2x3 float32), b (1 float16, expected 1 float32)",
    ]


def save_with_mean(run: Path, step: int) -> tuple[dict, dict]:
    """A checkpoint of a run that keeps a running mean; returns the mean and the raw weights."""
    whole = content(step)
    raw = {name: tensor + 1 for name, tensor in whole["weights"].items() if name.endswith("weight")}
    whole["training"] |= {f"weights.{name}": tensor for name, tensor in raw.items()}
    whole["model"] |= {"ema": 0.999, "latents": {"mean": [0.0], "std": [1.0]}}
    save_checkpoint(run, step, **whole)
    return whole["weights"], raw


def test_the_raw_weights_lie_under_the_running_mean(tmp_path):
    mean, raw = save_with_mean(tmp_path / "run", 3)
    plain, found = find_model(tmp_path / "run"), find_model(tmp_path / "run", raw=True)
    assert torch.equal(plain.weights()["layer.0.weight"], mean["layer.0.weight"])
    assert torch.equal(found.weights()["layer.0.weight"], raw["layer.0.weight"])
    assert found.weights()["codebook.count"] == 3  # a buffer has no mean
    assert found.weights_hash != plain.weights_hash
    assert "ema" not in found.model
    assert "latents" not in found.model  # they were measured with the mean
    assert plain.model["latents"] == {"mean": [0.0], "std": [1.0]}


def test_raw_weights_are_exported_under_the_hash_that_they_were_found_with(tmp_path):
    _, raw = save_with_mean(tmp_path / "run", 3)
    bundle = export_bundle(tmp_path / "run", tmp_path / "bundle", raw=True)
    again = find_model(tmp_path / "bundle")
    assert bundle.weights_hash == again.weights_hash == find_model(tmp_path / "run", raw=True).weights_hash
    assert all(torch.equal(again.weights()[name], tensor) for name, tensor in raw.items())


def test_a_model_with_one_set_of_weights_has_no_raw_ones(run, tmp_path):
    save_with_mean(tmp_path / "mean", 3)
    export_bundle(tmp_path / "mean", tmp_path / "bundle")
    for path in (run, tmp_path / "bundle"):
        with pytest.raises(ModelError, match="has one set of weights only"):
            find_model(path, raw=True)


def test_damaged_raw_weights_are_refused(tmp_path):
    save_with_mean(tmp_path / "run", 3)
    file = tmp_path / "run/ckpt/step-00000003/training.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(ModelError, match="damaged or replaced"):
        find_model(tmp_path / "run", raw=True)
    assert not find_model(tmp_path / "run").raw


def test_a_bundle_with_another_description_has_the_same_weights(run, tmp_path):
    found = find_model(run)
    write_bundle(found, tmp_path / "bundle", latents={"mean": [1.0], "std": [2.0]})
    again = find_model(tmp_path / "bundle")
    assert again.weights_hash == found.weights_hash
    assert again.model == {**found.model, "latents": {"mean": [1.0], "std": [2.0]}}
    assert find_model(run).model == found.model
