from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from PIL import Image
from torch import nn

from flexvae_cli import load_model
from flexvae_cli.engine.model import Model, same_model
from flexvae_cli.errors import ModelError, UsageError


@pytest.fixture(scope="module")
def model(tiny_model) -> Model:
    return load_model(tiny_model)


def noise(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_a_model_is_a_module_ready_for_use(model, tiny_model):
    assert isinstance(model, nn.Module)
    assert not model.training
    assert model.device == torch.device("cpu")
    assert model.path == tiny_model / "ckpt" / "step-00000000"
    assert len(model.weights_hash) == 64


@pytest.mark.parametrize("size", [(16, 16), (37, 50), (1, 1), (1, 40), (3, 2), (4, 100), (17, 15)])
def test_every_size_comes_back(model, size):
    x = noise(2, 3, *size)
    y = model(x)
    assert y.shape == x.shape
    assert y.abs().max() <= 1


def test_a_size_that_fits_is_not_padded(model):
    x = noise(1, 3, 12, 20)
    assert model.padded(x) is x
    assert torch.equal(model.encode(x), model.vae.encode(x).z)


def test_padding_reflects_at_the_end_of_each_axis(model):
    x = noise(1, 3, 6, 9)
    padded = model.padded(x)
    assert padded.shape == (1, 3, 8, 12)
    assert torch.equal(padded[..., :6, :9], x)
    assert torch.equal(padded[..., 6:, :9], x[..., [4, 3], :])
    assert torch.equal(padded[..., :6, 9:], x[..., [7, 6, 5]])


def test_what_is_too_small_to_reflect_repeats_its_edge(model):
    x = noise(1, 3, 1, 2)
    assert torch.equal(model.padded(x), x[..., [0, 1, 1, 1]].expand(1, 3, 4, 4))


def test_latents_have_the_shape_that_was_announced(model):
    for size in ((16, 16), (37, 50), (1, 9)):
        assert tuple(model.encode(noise(1, 3, *size)).shape[1:]) == model.latent_shape(size)


def test_encoding_gives_the_mean_and_decoding_crops(model):
    x = noise(1, 3, 10, 10)
    encoded = model.encoded(x)
    assert torch.equal(encoded.z, encoded.posterior.mean)
    assert torch.equal(model.encode(x), model.encode(x))
    assert model.decode(encoded.z).shape == (1, 3, 12, 12)
    assert torch.equal(model.decode(encoded.z, size=(10, 10)), model.decode(encoded.z)[..., :10, :10])


@pytest.mark.parametrize("shape", [(1, 1, 16, 16), (3, 16, 16), (1, 3, 16)])
def test_samples_and_latents_of_another_kind_are_refused(model, shape):
    with pytest.raises(UsageError, match="samples are batch x 3 x space x space"):
        model.encode(torch.zeros(shape))
    with pytest.raises(UsageError, match="latents are batch x 2 x space x space"):
        model.decode(torch.zeros(shape))


def test_an_image_is_prepared_as_in_training(model, make_model, tmp_path):
    image = Image.new("RGBA", (5, 4), (255, 0, 0, 0))
    assert model.preprocess(image).shape == (3, 4, 5)
    assert model.preprocess(image).unique().tolist() == [1.0]
    black = load_model(make_model(tmp_path / "run", preprocessing={"background": "#000000", "exif": True}))
    assert black.preprocess(image).unique().tolist() == [-1.0]


def test_exif_is_heeded_where_training_heeded_it(model, make_model, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 4)).save(tmp_path / "a.jpg", exif=exif)
    deaf = load_model(make_model(tmp_path / "run", preprocessing={"background": "#ffffff", "exif": False}))
    with Image.open(tmp_path / "a.jpg") as image:
        assert model.preprocess(image).shape == (3, 8, 4)
        assert deaf.preprocess(image).shape == (3, 4, 8)


def test_the_prior_is_the_standard_normal(model):
    draw = model.prior(400, (16, 16), generator=torch.Generator().manual_seed(1))
    again = model.prior(400, (16, 16), generator=torch.Generator().manual_seed(1))
    assert draw.shape == (400, 2, 4, 4)
    assert torch.equal(draw, again)
    assert draw.mean().abs() < 0.05
    assert (draw.std() - 1).abs() < 0.05


def test_the_fitted_prior_has_the_statistics_of_training(model):
    draw = model.prior(400, (16, 16), generator=torch.Generator().manual_seed(1), fitted=True)
    torch.testing.assert_close(draw.mean(dim=(0, 2, 3)), torch.tensor([0.5, -0.5]), atol=0.1, rtol=0)
    torch.testing.assert_close(draw.std(dim=(0, 2, 3)), torch.tensor([2.0, 0.5]), atol=0.1, rtol=0)


def test_logits_come_out_as_samples(make_model, tmp_path):
    samples, logits = (load_model(make_model(tmp_path / out, output=out)) for out in ("samples", "logits"))
    z = noise(1, 2, 4, 4)
    torch.testing.assert_close(logits.decode(z), samples.vae.decoder(z).sigmoid() * 2 - 1)


def test_loading_leaves_the_random_stream_alone(tiny_model):
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    load_model(tiny_model)
    assert torch.equal(torch.rand(4), expected)


def test_latents_of_another_model_are_refused(model):
    same_model(model, model.weights_hash, "latents")
    with pytest.raises(ModelError, match="made by another model"):
        same_model(model, "0" * 64, "latents")


def test_a_missing_plugin_is_named(make_model, tmp_path):
    run = make_model(tmp_path / "run", plugins={"flexvae": "0.1", "flexvae-snakes": "1.2"})
    with pytest.raises(ModelError, match=r"flexvae-snakes 1\.2, which is not installed"):
        load_model(run)


def test_weights_that_do_not_fit_the_description_are_refused(make_model, tmp_path):
    run = make_model(tmp_path / "run", change=lambda weights: weights.pop("decoder.0.bias"))
    with pytest.raises(ModelError, match=r"lacks decoder\.0\.bias"):
        load_model(run)


def test_importing_the_package_costs_no_torch():
    script = "import sys, flexvae_cli; flexvae_cli.load_model; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert done.stdout == "False\n"
