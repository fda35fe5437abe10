"""The structure files of published autoencoders: every size is the published one, to the last parameter."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import pytest

from flexvae_cli.config import load_config
from flexvae_cli.net import make_net
from flexvae_cli.plugins import installed
from flexvae_cli.structure import read_structure
from flexvae_cli.tracing import Trace, trace

ROOT = Path(__file__).parents[1]
STRUCTURES = ROOT / "configs" / "structures"
PAGE = ROOT / "docs" / "presets.md"

IMAGE = (3, 256, 256)


class Published(NamedTuple):
    """Parameters of encoder and decoder, what the encoder gives and what the decoder takes."""

    encoder: int
    decoder: int
    gives: tuple[int, ...]
    takes: tuple[int, ...]
    sample: tuple[int, ...] = IMAGE


PUBLISHED = {
    "sd-kl-f8": Published(34_163_664, 49_490_199, (8, 32, 32), (4, 32, 32)),
    "ldm-kl-f4c3": Published(22_351_280, 32_960_783, (6, 64, 64), (3, 64, 64)),
    "ldm-kl-f16c16": Published(28_266_816, 41_344_147, (32, 16, 16), (16, 16, 16)),
    "ldm-kl-f32c64": Published(42_631_168, 61_248_963, (128, 8, 8), (64, 8, 8)),
    "flux-f8c16": Published(34_274_208, 49_545_475, (32, 32, 32), (16, 32, 32)),
    "flux2-f8c32": Published(34_425_856, 49_620_259, (64, 32, 32), (32, 32, 32)),
    "taesd": Published(1_222_532, 1_222_531, (4, 32, 32), (4, 32, 32)),
    "vqgan-f16": Published(29_363_968, 42_515_587, (256, 16, 16), (256, 16, 16)),
    "dc-ae-f32c32": Published(123_172_384, 200_184_076, (32, 8, 8), (32, 8, 8)),
    "dc-ae-f32c32-sana": Published(153_027_104, 159_223_171, (32, 8, 8), (32, 8, 8)),
    "oobleck-f2048c64": Published(77_989_888, 78_122_626, (128, 32), (64, 32), (2, 65_536)),
    "monai-3d": Published(6_551_259, 7_214_989, (6, 20, 28, 20), (3, 20, 28, 20), (1, 160, 224, 160)),
}
IMAGES = [name for name, published in PUBLISHED.items() if published.sample == IMAGE]
# Whole models, as diffusers (MONAI for its own) counts them; that of VQGAN without its codebook of 16,384 x 256.
TOTALS = {
    "sd-kl-f8": 83_653_863,
    "ldm-kl-f4c3": 55_312_063,
    "ldm-kl-f16c16": 69_610_963,
    "ldm-kl-f32c64": 103_880_131,
    "flux-f8c16": 83_819_683,
    "flux2-f8c32": 84_046_115,
    "taesd": 2_445_063,
    "vqgan-f16": 76_073_859 - 16_384 * 256,
    "dc-ae-f32c32": 323_356_460,
    "dc-ae-f32c32-sana": 312_250_275,
    "oobleck-f2048c64": 156_112_514,
    "monai-3d": 13_766_248,
}


def followed(name: str, shape: tuple[int, ...]) -> Trace:
    """A structure file at an input shape, by the layers' rules alone."""
    problems: list[object] = []
    structure = read_structure(STRUCTURES / f"{name}.json", installed().registry)
    done = trace(structure.expanded(), shape, problems, None)
    assert done.complete, problems
    assert all(row.ruled for row in done.rows)
    assert not problems
    return done


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_has_the_published_size(name: str) -> None:
    published = PUBLISHED[name]
    encoder, decoder = followed(f"{name}-encoder", published.sample), followed(f"{name}-decoder", published.takes)
    assert (encoder.parameters, decoder.parameters) == (published.encoder, published.decoder)
    assert encoder.parameters + decoder.parameters == TOTALS[name]
    assert (encoder.gives, decoder.gives) == (published.gives, published.sample)


@pytest.mark.parametrize("name", IMAGES)
def test_a_preset_takes_images_that_are_not_square(name: str) -> None:
    published = PUBLISHED[name]
    space = (published.gives[1] // 2, 3 * published.gives[2] // 4)
    assert followed(f"{name}-encoder", (3, 128, 192)).gives == (published.gives[0], *space)
    assert followed(f"{name}-decoder", (published.takes[0], *space)).gives == (3, 128, 192)


@pytest.mark.parametrize("name", PUBLISHED)
def test_encoder_and_decoder_of_a_preset_are_an_autoencoder(name: str) -> None:
    published, registry = PUBLISHED[name], installed().registry
    parts = [read_structure(STRUCTURES / f"{name}-{part}.json", registry) for part in ("encoder", "decoder")]
    bottleneck = "None" if published.gives == published.takes else "KL"
    sample = (3, 64, 96) if name in IMAGES else (2, 4096) if len(published.sample) == 2 else (1, 32, 40, 24)
    net = make_net(parts[0], bottleneck, parts[1], sample, registry, None)
    net.checked()
    assert net.parameters == TOTALS[name]
    assert net.fitting(sample[1:]) == sample[1:]
    assert net.fitting(tuple(n - 1 for n in sample[1:])) == sample[1:]


def test_every_pair_of_structure_files_is_a_published_one_or_that_of_a_config() -> None:
    pairs = {path.stem.removesuffix("-encoder") for path in STRUCTURES.glob("*-encoder.json")}
    encoders = [load_config(path).settings.model.encoder for path in (ROOT / "configs").glob("*.toml")]
    assert pairs - {path.stem.removesuffix("-encoder") for path in encoders} == set(PUBLISHED)


def test_the_page_on_presets_says_what_the_files_are() -> None:
    rows = re.findall(r"^\| `([a-z0-9-]+)` \| [^|]+ \| ([\d,]+) \+ ([\d,]+) \| ([\dx]+) \|", PAGE.read_text(), re.M)
    said = {name: (encoder, decoder, latent) for name, encoder, decoder, latent in rows}
    assert said == {
        name: (f"{published.encoder:,}", f"{published.decoder:,}", "x".join(map(str, published.takes)))
        for name, published in PUBLISHED.items()
    }
