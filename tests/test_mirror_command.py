"""`flexvae mirror`: a decoder to stdout or to a file, checked before it is written."""

from __future__ import annotations

import json

import pytest

from flexvae_cli.errors import Exit

ENCODER = ["C2d_3_8_3_2_1", "GN_4_8", "SiLU", "C2d_8_8_3_2_1"]
DECODER = ["UpS_2", "C2d_4_8_3_1_1", "GN_4_8", "SiLU", "UpS_2", "C2d_8_3_3_1_1"]


@pytest.fixture
def encoder(tmp_path):
    path = tmp_path / "encoder.json"
    path.write_text(json.dumps(ENCODER))
    return path


def test_the_decoder_goes_to_stdout(flexvae, encoder):
    done = flexvae("mirror", encoder)
    assert done.exit_code == 0
    assert json.loads(done.stdout) == DECODER
    assert "3x256x256 -> latent 4x64x64 -> 3x256x256" in done.stderr


def test_a_file_that_is_there_is_kept(flexvae, encoder, tmp_path):
    file = tmp_path / "decoder.json"
    assert flexvae("mirror", encoder, "-o", file, "--bottleneck", "None").exit_code == 0
    written = file.read_text()
    assert json.loads(written)[1] == "C2d_8_8_3_1_1"
    assert flexvae("mirror", encoder, "-o", file).exit_code == Exit.USAGE
    assert file.read_text() == written
    assert flexvae("mirror", encoder, "-o", file, "--overwrite").exit_code == 0
    assert file.read_text() != written
    assert flexvae("inspect", file, "--input", "4x8x8").exit_code == 0


def test_the_report(flexvae, encoder, tmp_path):
    done = flexvae("mirror", encoder, "-o", tmp_path / "d.json", "--upsample", "pixel-shuffle", "--json")
    report = json.loads(done.stdout)
    assert report["decoder"] == json.loads((tmp_path / "d.json").read_text())
    assert (report["input"], report["latent"], report["bottleneck"]) == ([3, 256, 256], [4, 64, 64], "KL")
    assert report["decoder"][-1] == "PS_2"
    assert set(report["parameters"]) == {"encoder", "decoder"}


def test_channels_that_no_layer_tells(flexvae, tmp_path):
    path = tmp_path / "encoder.json"
    path.write_text('["HaarD", "C2d_4_8_1"]')
    assert flexvae("mirror", path).exit_code == Exit.USAGE
    done = flexvae("mirror", path, "--channels", 1)
    assert json.loads(done.stdout) == ["C2d_4_4_1", "HaarU"]


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ('["C2d_3_8_3", "AdAvgP_4"]', "AdAvgP_4 cannot be mirrored"),
        ('["C2d_3_8_3", "Nope"]', "unknown layer 'Nope'"),
        ('{"a": 1}', "a structure is a JSON list"),
    ],
)
def test_nothing_is_written_of_what_cannot_be_mirrored(flexvae, tmp_path, document, said):
    path = tmp_path / "encoder.json"
    path.write_text(document)
    done = flexvae("mirror", path, "-o", tmp_path / "decoder.json")
    assert done.exit_code == Exit.USAGE
    assert said in done.stderr
    assert not (tmp_path / "decoder.json").exists()


def test_a_bottleneck_that_there_is_none_of(flexvae, encoder):
    done = flexvae("mirror", encoder, "--bottleneck", "KLL")
    assert done.exit_code == Exit.USAGE
    assert "bottleneck" in done.stderr
