"""Raw latents, normalized ones, and the way there and back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from flexvae_cli.engine.normalization import Normalization
from flexvae_cli.engine.reading import seal_of
from flexvae_cli.errors import Exit, ModelError, UsageError

STATISTICS = {"mean": [0.5, -0.5], "std": [2.0, 0.5]}  # those that the fixtures' models carry


def manifest_in(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text())


def rewrite(folder: Path, **latents) -> None:
    content = manifest_in(folder)
    del content["seal"]
    content["latents"].update(latents)
    content["seal"] = seal_of(content)
    (folder / "manifest.json").write_text(json.dumps(content))


def encode(flexvae, model, photos, out, *options) -> Path:
    result = flexvae("encode", model, photos, out, "--workers", 0, *options)
    assert result.exit_code == 0, result.stderr
    return out


def latents_in(folder: Path) -> dict[str, torch.Tensor]:
    """By image name, in either layout."""
    found = {}
    for image in manifest_in(folder)["images"]:
        z = load_file(folder / image["file"])["latents"]
        found[image["name"]] = z if z.dim() == 3 else z[image["index"]]
    return found


def test_a_normalized_channel_has_the_mean_and_deviation_taken_out():
    found = Normalization.of(STATISTICS, 2, "here")
    raw = torch.tensor([[[[2.5]], [[0.0]]]])
    assert found.normalized(raw).flatten().tolist() == [1.0, 1.0]
    assert found.raw(found.normalized(raw)).flatten().tolist() == [2.5, 0.0]


@pytest.mark.parametrize("shape", [(2, 5, 5), (2, 3), (2,), ()])
def test_what_is_no_batch_of_its_channels_is_refused(shape):
    for way in (Normalization.of(STATISTICS, 2, "here").raw, Normalization.of(STATISTICS, 2, "here").normalized):
        with pytest.raises(UsageError, match="a batch of 2 channels"):
            way(torch.zeros(shape))


def test_there_and_back_is_equal_within_the_rounding_of_float32():
    generator = torch.Generator().manual_seed(0)
    raw = torch.randn(3, 2, 5, 7, generator=generator) * 1e3 + 100
    found = Normalization((99.3, -0.0071), (1234.5, 3e-5))
    back = found.raw(found.normalized(raw))
    assert back.dtype == torch.float32
    assert ((back - raw).abs() <= 2 * torch.finfo(torch.float32).eps * (raw.abs() + 100)).all()


@pytest.mark.parametrize(
    ("statistics", "words"),
    [
        (None, "carries no latent statistics"),
        ({}, "carries no latent statistics"),
        ([1], "that are not 'mean' and 'std' of numbers"),
        ({"mean": [0, 0]}, "that are not"),
        ({"mean": [0, 0], "std": [1, "1"]}, "that are not"),
        ({"mean": [0, 0], "std": [1, True]}, "that are not"),
        ({"mean": [0, float("nan")], "std": [1, 1]}, "that are not"),
        ({"mean": [0], "std": [1]}, "of 1 means and 1 deviations, not of 2 channels"),
        ({"mean": [0, 0], "std": [1, 0]}, "deviation of 0 in latent channel 1"),
        ({"mean": [0, 0], "std": [-1, 1]}, "deviation of -1 in latent channel 0"),
        ({"mean": [0, 0], "std": [1e300, 1]}, "in latent channel 0"),
    ],
)
def test_statistics_that_cannot_be_undone_are_refused(statistics, words):
    with pytest.raises(ModelError, match=words):
        Normalization.of(statistics, 2, "here")


@pytest.mark.parametrize("layout", ["shards", "files"])
def test_normalized_latents_are_those_of_the_recorded_numbers(flexvae, tiny_model, photos, tmp_path, layout):
    raw = latents_in(encode(flexvae, tiny_model, photos, tmp_path / "raw", "--format", layout))
    folder = encode(flexvae, tiny_model, photos, tmp_path / "normal", "--format", layout, "--latents", "normalized")
    assert manifest_in(folder)["latents"]["scaling"] == "normalized"
    assert manifest_in(folder)["latents"]["statistics"] == STATISTICS
    mean, std = (torch.tensor(STATISTICS[key])[:, None, None] for key in ("mean", "std"))
    for name, z in latents_in(folder).items():
        torch.testing.assert_close(z, (raw[name] - mean) / std, rtol=1e-6, atol=1e-6)
    for file in manifest_in(folder)["files"]:
        with safe_open(folder / file["path"], "pt") as content:
            about = json.loads(content.metadata()["flexvae"])
        assert (about["latents"], about["mean"], about["std"]) == ("normalized", STATISTICS["mean"], STATISTICS["std"])


def test_raw_latents_say_so_in_every_file(flexvae, tiny_model, photos, tmp_path):
    folder = encode(flexvae, tiny_model, photos, tmp_path / "raw")
    for file in manifest_in(folder)["files"]:
        with safe_open(folder / file["path"], "pt") as content:
            about = json.loads(content.metadata()["flexvae"])
        weights_hash = manifest_in(folder)["model"]["weights_hash"]
        assert about == {"weights_hash": weights_hash, "latents": "raw", "value": "moments"}


@pytest.mark.parametrize("layout", ["shards", "files"])
def test_both_decode_to_the_same_images(flexvae, tiny_model, photos, tmp_path, layout):
    for scaling in ("raw", "normalized"):
        options = ("--format", layout, "--latents", scaling)
        folder = encode(flexvae, tiny_model, photos, tmp_path / f"z-{scaling}", *options)
        assert flexvae("decode", tiny_model, folder, tmp_path / scaling).exit_code == 0
    for name in ("b/c.png", "e/f.png"):
        with Image.open(tmp_path / "raw" / name) as one, Image.open(tmp_path / "normalized" / name) as two:
            assert np.abs(np.asarray(one).astype(int) - np.asarray(two)).max() <= 1


def test_flipped_latents_are_normalized_too(flexvae, tiny_model, photos, tmp_path):
    raw = encode(flexvae, tiny_model, photos / "e", tmp_path / "raw", "--flip")
    normal = encode(flexvae, tiny_model, photos / "e", tmp_path / "normal", "--flip", "--latents", "normalized")
    one, two = (load_file(next(folder.rglob("*.safetensors")))["latents_flip"] for folder in (raw, normal))
    torch.testing.assert_close(two[:, 0] * 2.0 + 0.5, one[:, 0])
    torch.testing.assert_close(two[:, 1] * 0.5 - 0.5, one[:, 1])


def test_the_recorded_numbers_count_whatever_the_model_carries_now(flexvae, tiny_model, photos, tmp_path):
    folder = encode(flexvae, tiny_model, photos, tmp_path / "normal", "--latents", "normalized")
    bundle = tmp_path / "bundle"
    assert flexvae("stats", tiny_model, photos, "--write", bundle, "--workers", 0).exit_code == 0
    assert json.loads((bundle / "model.json").read_text())["latents"] != STATISTICS
    for name, model in (("one", tiny_model), ("two", bundle)):
        assert flexvae("decode", model, folder, tmp_path / name).exit_code == 0
    for path in (tmp_path / "one").rglob("*.png"):
        assert path.read_bytes() == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes()


@pytest.mark.parametrize(
    "latents",
    [
        {"statistics": {}},
        {"statistics": {"mean": [0.5], "std": [2.0]}},
        {"statistics": {"mean": [0.5, -0.5], "std": [2.0, 0.0]}},
        {"statistics": {"mean": [1e39, 0.0], "std": [1.0, 1.0]}},
        {"scaling": "standardized"},
    ],
)
def test_normalized_latents_that_cannot_be_undone_are_refused(flexvae, tiny_model, photos, tmp_path, latents):
    folder = encode(flexvae, tiny_model, photos, tmp_path / "normal", "--latents", "normalized")
    rewrite(folder, **latents)
    refused = flexvae("decode", tiny_model, folder, tmp_path / "out")
    assert refused.exit_code == Exit.MODEL
    assert str(folder) in refused.stderr
    assert not (tmp_path / "out").exists()


def test_a_model_without_statistics_says_how_to_get_them(flexvae, make_model, photos, tmp_path):
    run = make_model(tmp_path / "run", latents={})
    before = encode(flexvae, run, photos, tmp_path / "out")
    refused = flexvae("encode", run, photos, before, "--latents", "normalized", "--workers", 0, "--overwrite")
    assert refused.exit_code == Exit.MODEL
    assert "carries no latent statistics" in refused.stderr
    assert "--write" in refused.stderr
    assert manifest_in(before)["latents"]["scaling"] == "raw"  # what was there is still there
