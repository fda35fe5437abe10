"""The picture of what a net does with validation images."""

from __future__ import annotations

import io
import random

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from flexvae_cli.engine.bottlenecks.kl import KL
from flexvae_cli.engine.bottlenecks.none import Plain
from flexvae_cli.engine.preview import differences, latents, preview, quality
from flexvae_cli.engine.sheet import CAPTION_SIZE, NARROW, SMALL
from flexvae_cli.engine.vae import VAE

LINE = round(1.5 * CAPTION_SIZE)  # pixels of a label


def vae_of(channels: int, latent: int = 2, bottleneck: nn.Module | None = None) -> VAE:
    bottleneck = bottleneck or KL()
    torch.manual_seed(0)
    encoder = nn.Conv2d(channels, latent * (2 if isinstance(bottleneck, KL) else 1), 4, 4)
    decoder = nn.Sequential(nn.Upsample(scale_factor=4), nn.Conv2d(latent, channels, 1))
    return VAE(encoder, bottleneck, decoder)


def samples(channels: int, count: int = 3, size: tuple[int, int] = (16, 16)) -> torch.Tensor:
    return torch.rand(count, channels, *size, generator=torch.Generator().manual_seed(1)) * 2 - 1


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def height_of(rows: int) -> int:
    """Rows of tiles of `SMALL` pixels, one of them with captions."""
    return rows * (LINE + SMALL + CAPTION_SIZE) + CAPTION_SIZE + LINE


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize(("bottleneck", "rows"), [(KL, 5), (Plain, 4)])
def test_every_row_is_there_whatever_the_channels(channels, bottleneck, rows):
    image = opened(preview(vae_of(channels, bottleneck=bottleneck()), samples(channels)))
    assert image.format == "PNG"
    assert image.height == height_of(rows)
    assert image.width >= 3 * (SMALL + NARROW)


def test_the_first_row_is_the_originals_pixel_by_pixel():
    x = samples(3)
    image = opened(preview(vae_of(3), x))
    factor = SMALL // 16
    for index, sample in enumerate(x):
        left = CAPTION_SIZE + index * (SMALL + NARROW)
        box = (left, CAPTION_SIZE + LINE, left + SMALL, CAPTION_SIZE + LINE + SMALL)
        tile = np.asarray(image.crop(box), np.int64)[::factor, ::factor]
        assert abs(tile - (sample.permute(1, 2, 0).numpy() + 1) * 127.5).max() <= 0.5


def test_no_generator_moves_and_the_net_goes_on_training():
    vae, x = vae_of(3).train(), samples(3)
    torch.manual_seed(5)
    states = torch.get_rng_state(), random.getstate(), str(np.random.get_state())
    first = preview(vae, x)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), str(np.random.get_state())) == states[1:]
    assert vae.training
    assert preview(vae, x) == first


def test_numbers_that_are_not_finite_are_drawn_as_well():
    vae = vae_of(3)
    vae.encoder.weight.data[0] = float("nan")
    assert opened(preview(vae, samples(3))).height == height_of(5)


def test_large_images_are_scaled_down_and_narrow_strips_hold_their_labels():
    image = opened(preview(vae_of(3), samples(3, 2, (64, 600))))
    assert image.width < 2 * 300
    assert opened(preview(vae_of(1, 9), samples(1, 1, (64, 8)))).width > 100


@pytest.mark.parametrize(
    ("error", "said"),
    [(0.0, ", 64 times as bright"), (0.03, ", 32 times as bright"), (0.2, ", 4 times as bright"), (0.9, "")],
)
def test_differences_are_amplified_by_what_the_label_says(error, said):
    x = torch.full((2, 3, 8, 8), -0.9)
    label, tiles = differences(x, x + 2 * error)
    assert label == f"|difference|{said}"
    factor = int(said.split()[1]) if said else 1
    shown = np.asarray(tiles[0].image.convert("L"), np.float64)
    assert np.ptp(shown) == 0
    assert shown[0, 0] == pytest.approx(min(0.95, error) * factor * 255, abs=1)


def test_a_few_large_differences_do_not_hide_the_small_ones():
    x = torch.zeros(1, 1, 20, 20)
    y = x + 0.02
    y[0, 0, 0, 0] = 2.0
    assert differences(x, y)[0] == "|difference|, 64 times as bright"


def test_the_quality_of_a_reconstruction():
    x = torch.zeros(3, 4, 4)
    assert quality(x, x + 0.2) == "20.0 dB"
    assert quality(x, x) == "identical"


def test_a_channel_is_shown_relative_to_itself():
    z = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    scale, shift = torch.tensor([1.0, 100.0, 0.01]).view(1, 3, 1, 1), torch.tensor([0.0, -7.0, 5.0]).view(1, 3, 1, 1)
    first, second = (latents(each, (100, 100))[1] for each in (z, z * scale + shift))
    for a, b in zip(first, second, strict=True):
        assert abs(np.asarray(a.image, int) - np.asarray(b.image, int)).max() <= 1


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((2, 1, 4, 4), "latents: 1 channel, "),
        ((2, 3, 4, 4), "latents: 3 channels, "),
        ((2, 16, 4, 4), "latents: 8 of 16 channels, "),
        ((2, 3, 7), "latents: 3 channels, "),
        ((2, 3, 5, 4, 4), "latents: 3 channels, "),
        ((2, 3), "latents: 3 channels, "),
    ],
)
def test_latents_of_any_number_of_axes_and_channels(shape, said):
    label, tiles = latents(torch.ones(shape), (48, 64))
    assert label.startswith(said)
    assert [tile.image.size for tile in tiles] == [(48, 64)] * 2
    assert tiles[0].image.getpixel((0, 0)) == (128, 128, 128)  # what does not vary is grey


def test_a_prior_of_another_kind_is_asked_for_the_latent_s_shape():
    asked = []

    class Half(Plain):
        def sample(self, shape, generator):
            asked.append((shape, generator.initial_seed()))
            return torch.full(shape, 0.5)

    preview(vae_of(3, bottleneck=Half()), samples(3))
    assert asked == [((3, 2, 4, 4), 0)]
