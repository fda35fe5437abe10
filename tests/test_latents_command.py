"""`latents verify`, `latents info`, what the options of `encode` store, and the data set that training reads."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from flexvae_cli import LatentDataset, load_model
from flexvae_cli.engine.inference import encoded_batch
from flexvae_cli.engine.manifest import read_manifest
from flexvae_cli.engine.reading import seal_of
from flexvae_cli.errors import Exit, ModelError, UsageError


@pytest.fixture
def encode(flexvae, tiny_model, photos, tmp_path):
    """Encode the photographs with options; returns the folder and what was said."""

    def run(*options, model=tiny_model, name="latents"):
        done = flexvae("encode", model, photos, tmp_path / name, "--workers", 0, "--json", *options)
        assert done.exit_code == 0, done.stderr
        return tmp_path / name, json.loads(done.stdout)

    return run


def posterior_of(model_path: Path, photos: Path, name: str):
    from PIL import Image

    model = load_model(model_path)
    with Image.open(photos / name) as image:
        return encoded_batch(model, [model.preprocess(image)]).posterior


LAYOUTS = ["shards", "files", "npy", "wds"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_verifies_decodes_and_reads_the_same(flexvae, tiny_model, encode, tmp_path, layout):
    folder, said = encode("--format", layout, "--flips")
    assert (said["value"], said["dtype"], said["error"]) == ("moments", "float32", None)
    verified = flexvae("latents", "verify", folder, "--model", tiny_model)
    assert (verified.exit_code, verified.stdout) == (
        0,
        f"5 latents in {said['files']} files: all as the manifest says\n",
    )
    shards, _ = encode(name="shards")
    assert flexvae("decode", tiny_model, folder, tmp_path / "a").exit_code == 0
    assert flexvae("decode", tiny_model, shards, tmp_path / "b").exit_code == 0
    for path in (tmp_path / "a").rglob("*.png"):
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()
    dataset = LatentDataset(folder, sample=False, flips=False, verify=True)
    expected = LatentDataset(shards, sample=False)
    assert [label for _, label in dataset] == [label for _, label in expected]
    assert all(torch.equal(a.z, b.z) for a, b in zip(dataset, expected, strict=True))


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "int8"])
def test_the_error_of_a_type_is_what_it_costs(flexvae, tiny_model, encode, dtype):
    exact = LatentDataset(encode(name="exact")[0], sample=False)
    folder, said = encode("--dtype", dtype, "--posterior", "mean", name=dtype)
    rounded = LatentDataset(folder)
    away = torch.cat([(a.z - b.z).double().flatten() for a, b in zip(exact, rounded, strict=True)])
    assert said["error"]["max"] == pytest.approx(float(away.abs().max()), rel=1e-6)
    assert said["error"]["rms"] == pytest.approx(float(away.square().mean().sqrt()), rel=1e-6)
    assert 0 < said["error"]["rms"] < 0.02
    assert flexvae("latents", "verify", folder).exit_code == 0


def test_moments_are_those_of_the_posterior(tiny_model, photos, encode):
    dataset = LatentDataset(encode()[0], shape=(2, 10, 13), seed=3)
    assert dataset.names == ["b/c.png", "b/d.png"]
    posterior = posterior_of(tiny_model, photos, "b/c.png")
    mean, std = posterior.mean[0], (0.5 * posterior.log_variance[0]).exp()
    torch.testing.assert_close(LatentDataset(encode()[0], shape=(2, 10, 13), sample=False)[0].z, mean)
    draws = torch.stack([dataset[epoch, 0].z for epoch in range(400)])
    assert ((draws.mean(0) - mean).abs() < 6 * std / 20).all()
    assert ((draws.std(0) / std - 1).abs() < 0.25).all()


def test_noise_and_flips_are_functions_of_seed_epoch_and_index(encode):
    folder, _ = encode("--flips")
    one, other = LatentDataset(folder, seed=1), LatentDataset(folder, seed=2)
    assert torch.equal(one[3].z, one[3].z)
    assert torch.equal(one[1, 3].z, pickle.loads(pickle.dumps(one))[1, 3].z)
    assert not torch.equal(one[3].z, other[3].z)
    assert not torch.equal(one[0, 3].z, one[1, 3].z)
    before = one[7, 2].z
    one.set_epoch(7)
    assert torch.equal(one[2].z, before)
    still = LatentDataset(folder, sample=False, seed=1)
    mirrored = [torch.equal(still[epoch, 2].z, still[0, 2].z) for epoch in range(64)]
    assert 16 < sum(mirrored) < 48
    with pytest.raises(IndexError):
        still[5]


def test_workers_give_what_one_process_gives_and_see_the_epoch(encode):
    dataset = LatentDataset(encode("--flips")[0], shape=(2, 10, 13))
    loader = DataLoader(dataset, batch_size=2, num_workers=1, persistent_workers=True, multiprocessing_context="spawn")
    for epoch in range(2):
        dataset.set_epoch(epoch)
        ((z, label),) = loader
        assert torch.equal(z, torch.stack([dataset[epoch, 0].z, dataset[epoch, 1].z]))
        assert label.tolist() == [1, 1]
    del loader


@pytest.mark.parametrize("stored", ["raw", "normalized"])
def test_scaling_is_undone_or_done_by_the_recorded_numbers(encode, stored):
    raw = LatentDataset(encode(name="raw")[0], sample=False)
    mean, std = torch.tensor([0.5, -0.5]).view(2, 1, 1), torch.tensor([2.0, 0.5]).view(2, 1, 1)
    folder, _ = encode("--latents", stored, name=stored)
    for scaling in ("raw", "normalized"):
        dataset = LatentDataset(folder, scaling=scaling, sample=False)
        for one, there in zip(dataset, raw, strict=True):
            wanted = there.z if scaling == "raw" else (there.z - mean) / std
            torch.testing.assert_close(one.z, wanted)
            torch.testing.assert_close(dataset.raw(one.z[None])[0], there.z)
            torch.testing.assert_close(dataset.raw(one.z), there.z)
    square = torch.ones(2, 2, 2)  # as high as it has channels: an axis of a batch would be taken for them
    normalized = LatentDataset(folder, scaling="normalized", sample=False)
    torch.testing.assert_close(normalized.raw(square), std + mean * torch.ones(2, 2, 2))
    for wrong in (torch.ones(2, 2), torch.ones(1, 1, 2, 2, 2), torch.ones(3, 2, 2)):
        with pytest.raises(UsageError, match=r"axes|a batch of 2 channels"):
            normalized.raw(wrong)
    drawn = LatentDataset(folder, scaling="raw"), LatentDataset(encode(name="raw")[0])
    torch.testing.assert_close(drawn[0][0].z, drawn[1][0].z)


def test_samples_are_functions_of_the_seed_and_the_name(tiny_model, photos, encode):
    options = ("--posterior", "sample")
    first, again, other = (
        LatentDataset(encode(*options, "--seed", seed, name=name)[0]) for seed, name in ((0, "a"), (0, "b"), (1, "c"))
    )
    assert torch.equal(first[2].z, again[2].z)
    assert not torch.equal(first[2].z, other[2].z)
    posterior = posterior_of(tiny_model, photos, first.names[2])
    away = (first[2].z - posterior.mean[0]) / (0.5 * posterior.log_variance[0]).exp()
    assert 0.8 < float(away.std()) < 1.2


def test_resized_images_have_one_shape_and_say_so(flexvae, tiny_model, encode, tmp_path):
    folder, said = encode("--resize", "16x12")
    assert said["shapes"] == ["2x4x3"]
    manifest = read_manifest(folder)
    assert manifest.preprocessing["resize"] == [16, 12]
    assert {image.size for image in manifest.images} == {(16, 12)}
    assert flexvae("decode", tiny_model, folder, tmp_path / "images").exit_code == 0
    assert flexvae("infer", tiny_model, tmp_path / "photos", tmp_path / "infer", "--resize", "16x12").exit_code == 0
    for path in (tmp_path / "images").rglob("*.png"):
        assert path.read_bytes() == (tmp_path / "infer" / path.relative_to(tmp_path / "images")).read_bytes()


def test_bf16_arithmetic_is_recorded_and_near(encode):
    exact, near = LatentDataset(encode(name="a")[0], sample=False), encode("--precision", "bf16", name="b")[0]
    assert read_manifest(near).latents.precision == "bf16"
    for a, b in zip(exact, LatentDataset(near, sample=False), strict=True):
        assert not torch.equal(a.z, b.z)
        assert (a.z - b.z).abs().max() < 0.05 * a.z.abs().max()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--format", "npy", "--dtype", "bf16"), "--format npy has no room for bf16"),
        (("--format", "npy", "--dtype", "int8"), "use 'fp32' or 'fp16'"),
        (("--latents", "indices"), "gives no indices"),
        (("--resize", "0x3"), "--resize wants height x width"),
        (("--device", "cpu", "--precision", "tf32"), "has no tf32"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(flexvae, tiny_model, photos, tmp_path, options, words):
    refused = flexvae("encode", tiny_model, photos, tmp_path / "z", *options)
    assert refused.exit_code == Exit.USAGE
    assert words in refused.stderr
    assert not (tmp_path / "z").exists()


def test_a_bottleneck_without_a_posterior_has_no_moments(flexvae, make_model, photos, tmp_path):
    model = make_model(tmp_path / "plain", encoder=["C2d_3_2_4_4"], bottleneck="None", decoder=["UpS_4", "C2d_2_3_1"])
    refused = flexvae("encode", model, photos, tmp_path / "z", "--posterior", "moments")
    assert refused.exit_code == Exit.USAGE
    assert "the bottleneck None has no posterior" in refused.stderr
    assert flexvae("encode", model, photos, tmp_path / "z", "--workers", 0).exit_code == 0
    assert read_manifest(tmp_path / "z").latents.value == "output"
    assert LatentDataset(tmp_path / "z")[0].z.shape == (2, 4, 4)


def test_info_tells_counts_shapes_statistics_and_rate(flexvae, tiny_model, encode, photos):
    folder, _ = encode()
    told = json.loads(flexvae("latents", "info", folder, "--json").stdout)
    assert told["images"] == 5
    assert told["shapes"] == {"2x4x4": 2, "2x10x13": 2, "2x5x3": 1}
    assert told["labels"] == {"": 2, "b": 2, "e": 1}
    rows = torch.cat([each.z.flatten(1).double() for each in LatentDataset(folder, sample=False)], dim=1)
    for channel, row in zip(told["channels"], rows, strict=True):
        found = [channel[key] for key in ("mean", "std", "min", "max")]
        wanted = [row.mean(), row.std(unbiased=False), row.min(), row.max()]
        assert found == pytest.approx([each.item() for each in wanted], rel=1e-9)
    stats = json.loads(flexvae("stats", tiny_model, photos, "--json", "--workers", 0).stdout)
    assert told["kl_per_image"] == pytest.approx(stats["kl_per_image"], rel=1e-5)
    pixels = sum(height * width for height, width in LatentDataset(folder).sizes)
    assert told["bits_per_pixel"] == pytest.approx(8 * told["bytes"] / pixels)
    assert "KL per image" in flexvae("latents", "info", folder).stdout


def test_verify_tells_all_that_is_wrong_at_once(flexvae, encode, make_model, tmp_path):
    folder, _ = encode("--format", "files")
    (folder / "b/c.safetensors").write_bytes(b"x" + (folder / "b/c.safetensors").read_bytes()[1:])
    (folder / "b/d.safetensors").unlink()
    (folder / "mine.safetensors").write_bytes(b"")
    (folder / "latents_stats.pt").write_bytes(b"")
    done = flexvae("latents", "verify", folder, "--json", "--model", make_model(tmp_path / "other", seed=1))
    assert done.exit_code == Exit.MODEL
    problems = [(Path(each["where"]).name, each["what"]) for each in json.loads(done.stdout)["problems"]]
    assert [name for name, _ in problems] == ["c.safetensors", "d.safetensors", "mine.safetensors", "manifest.json"]
    for (_, what), words in zip(problems, ("damaged", "missing", "not in the manifest", "another model"), strict=True):
        assert words in what
    with pytest.raises(ModelError, match="damaged"):
        LatentDataset(folder, verify=True)


@pytest.mark.parametrize("layout", ["shards", "wds"])
def test_labels_that_are_not_those_of_the_files_are_told(flexvae, encode, layout):
    folder, _ = encode("--format", layout)
    content = json.loads((folder / "manifest.json").read_text())
    content.pop("seal")
    content["images"][0]["label"] = 2
    (folder / "manifest.json").write_text(json.dumps({**content, "seal": seal_of(content)}))
    done = flexvae("latents", "verify", folder)
    assert done.exit_code == Exit.MODEL
    assert "has other labels than the manifest" in done.stdout


def test_a_folder_without_a_manifest_is_no_data_set(flexvae, encode, tmp_path):
    folder, _ = encode()
    (folder / "manifest.json").unlink()
    with pytest.raises(ModelError, match=r"holds no manifest\.json"):
        LatentDataset(folder)
    assert flexvae("latents", "verify", folder).exit_code == Exit.MODEL
    assert flexvae("latents", "info", tmp_path / "none").exit_code == Exit.DATA


def test_a_shape_that_is_not_there_and_another_model_are_refused(encode):
    folder, _ = encode()
    with pytest.raises(UsageError, match="holds no latents of shape 9x9x9, only of 2x4x4, 2x10x13, 2x5x3"):
        LatentDataset(folder, shape=(9, 9, 9))
    with pytest.raises(ModelError, match="another model"):
        LatentDataset(folder).require_model("0" * 64)


def test_the_class_is_imported_when_it_is_asked_for():
    code = "import sys, flexvae_cli as f; print('torch' in sys.modules, bool(f.LatentDataset), 'torch' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert told.split() == ["False", "True", "True"]


def test_a_model_that_was_trained_on_full_decodes_gets_them(flexvae, make_model, tmp_path):
    """Photographs are scaled down by 8; the weights are the same, so that all that differs is how JPEGs are decoded."""
    from flexvae_cli.engine.data.sources import list_images

    photo = list_images("builtin:scenery/val")[0].path
    found = {}
    for draft in (True, False):
        how = {"background": "#ffffff", "exif": True, "draft": draft}
        model = make_model(tmp_path / f"model-{draft}", preprocessing=how)
        done = flexvae("encode", model, photo, tmp_path / f"{draft}", "--workers", 0, "--resize", "16x16")
        assert done.exit_code == 0, done.stderr
        assert read_manifest(tmp_path / f"{draft}").preprocessing["draft"] is draft
        found[draft] = LatentDataset(tmp_path / f"{draft}", sample=False)[0].z
    assert 0 < float((found[True] - found[False]).abs().max()) < 0.5 * float(found[False].abs().max())
