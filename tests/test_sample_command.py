"""`sample` and `interpolate`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flexvae_cli.errors import Exit


def content_of(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def test_samples_follow_from_the_seed(flexvae, tiny_model, tmp_path):
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        assert flexvae("sample", tiny_model, tmp_path / name, "--count", 3, "--seed", seed).exit_code == 0
    one, two, three = (content_of(tmp_path / name) for name in ("one", "two", "three"))
    assert list(one) == ["sample-000.png", "sample-001.png", "sample-002.png", "sheet.png"]
    assert one == two
    assert all(one[name] != three[name] for name in one)
    assert one["sample-000.png"] != one["sample-001.png"]
    assert pixels(tmp_path / "one" / "sample-000.png").shape == (16, 16, 3)


def test_a_sample_does_not_depend_on_how_many_there_are(flexvae, tiny_model, tmp_path):
    for name, count in (("few", 2), ("many", 5)):
        flexvae("sample", tiny_model, tmp_path / name, "--count", count)
    few, many = content_of(tmp_path / "few"), content_of(tmp_path / "many")
    assert all(few[name] == many[name] for name in ("sample-000.png", "sample-001.png"))


def test_any_size_can_be_asked_for(flexvae, tiny_model, tmp_path):
    result = flexvae("sample", tiny_model, tmp_path / "out", "--count", 1, "--size", "37x50", "--json")
    assert pixels(tmp_path / "out" / "sample-000.png").shape == (37, 50, 3)
    assert json.loads(result.stdout)["images"] == ["sample-000.png"]


@pytest.mark.parametrize("size", ["37", "0x5", "ax5", "3x37x50", "99999x99999", "-1x5", "٣x٣"])
def test_a_size_that_is_none_is_refused(flexvae, tiny_model, tmp_path, size):
    refused = flexvae("sample", tiny_model, tmp_path / "out", f"--size={size}")
    assert refused.exit_code == Exit.USAGE
    assert "--size" in refused.stderr


def test_fitted_draws_from_the_statistics_of_training(flexvae, tiny_model, make_model, tmp_path):
    assert flexvae("sample", tiny_model, tmp_path / "prior", "--count", 1).exit_code == 0
    assert flexvae("sample", tiny_model, tmp_path / "fitted", "--count", 1, "--fitted").exit_code == 0
    assert content_of(tmp_path / "prior") != content_of(tmp_path / "fitted")
    without = make_model(tmp_path / "without", latents={})
    refused = flexvae("sample", without, tmp_path / "out", "--fitted")
    assert refused.exit_code == Exit.USAGE
    assert "no latent statistics" in refused.stderr


def test_an_autoencoder_without_a_prior_says_so(flexvae, make_model, tmp_path):
    decoder = ["C2d_4_8_3_1_1", "UpS_4", "C2d_8_3_3_1_1"]
    plain = make_model(
        tmp_path / "plain", bottleneck="None", decoder=decoder, latents={"mean": [0] * 4, "std": [1] * 4}
    )
    refused = flexvae("sample", plain, tmp_path / "out")
    assert refused.exit_code == Exit.USAGE
    assert "has no prior" in refused.stderr
    assert flexvae("sample", plain, tmp_path / "fitted", "--fitted", "--count", 1).exit_code == 0


def test_samples_go_to_an_empty_folder(flexvae, tiny_model, tmp_path):
    assert flexvae("sample", tiny_model, tmp_path).exit_code == Exit.DONE
    assert flexvae("sample", tiny_model, tmp_path).exit_code == Exit.USAGE
    assert flexvae("sample", tiny_model, tmp_path, "--overwrite", "--count", 1).exit_code == 0


@pytest.mark.parametrize("options", [[], ["--spherical"]])
def test_the_ends_of_an_interpolation_are_the_reconstructions(flexvae, tiny_model, photos, tmp_path, options):
    a, b = photos / "a.jpg", photos / "a.png"
    for name, image in (("a", a), ("b", b)):
        flexvae("infer", tiny_model, image, tmp_path / name, "--workers", 0)
    out = tmp_path / "out"
    assert flexvae("interpolate", tiny_model, a, b, out, "--steps", 5, *options).exit_code == 0
    frames = [f"frame-{k:03d}.png" for k in range(5)]
    assert sorted(content_of(out)) == [*frames, "sheet.png"]
    assert (out / frames[0]).read_bytes() == (tmp_path / "a" / "a.png").read_bytes()
    assert (out / frames[-1]).read_bytes() == (tmp_path / "b" / "a.png").read_bytes()
    assert len({(out / frame).read_bytes() for frame in frames}) == 5


def test_a_sphere_is_another_way_than_a_straight_line(flexvae, tiny_model, photos, tmp_path):
    for name, options in (("line", []), ("sphere", ["--spherical"])):
        flexvae("interpolate", tiny_model, photos / "a.jpg", photos / "a.png", tmp_path / name, "--steps", 3, *options)
    assert (tmp_path / "line" / "frame-001.png").read_bytes() != (tmp_path / "sphere" / "frame-001.png").read_bytes()


def test_images_of_different_sizes_meet_at_their_centres(flexvae, tiny_model, photos, tmp_path):
    arguments = (
        "interpolate",
        tiny_model,
        photos / "b" / "c.png",
        photos / "e" / "f.bmp",
        tmp_path / "out",
        "--steps",
        2,
    )
    assert flexvae(*arguments).exit_code == 0
    assert pixels(tmp_path / "out" / "frame-000.png").shape == (20, 12, 3)
    centre = tmp_path / "centre.png"
    Image.fromarray(pixels(photos / "b" / "c.png")[8:28, 19:31]).save(centre)
    flexvae("infer", tiny_model, centre, tmp_path / "infer", "--workers", 0)
    assert (tmp_path / "out" / "frame-000.png").read_bytes() == (tmp_path / "infer" / "centre.png").read_bytes()


def test_what_an_interpolation_cannot_read_is_named(flexvae, tiny_model, photos, tmp_path):
    (tmp_path / "bad.png").write_text("no image")
    refused = flexvae("interpolate", tiny_model, photos / "a.jpg", tmp_path / "bad.png", tmp_path / "out")
    assert refused.exit_code == Exit.DATA
    assert "bad.png" in refused.stderr
    missing = flexvae("interpolate", tmp_path / "none", photos / "a.jpg", photos / "a.png", tmp_path / "out")
    assert missing.exit_code == Exit.MODEL
