"""`flexvae stats`."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from flexvae_cli import load_model
from flexvae_cli.api import Encoded, Gaussian
from flexvae_cli.engine.data.sources import list_images
from flexvae_cli.engine.evaluation.channels import LatentStatistics, Moments
from flexvae_cli.engine.evaluation.histogram import BINS, Histogram
from flexvae_cli.engine.inference import read_samples
from flexvae_cli.errors import Exit


def measured(flexvae, model, data, *options) -> dict:
    result = flexvae("stats", model, data, "--workers", 0, "--json", *options)
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def test_moments_are_the_same_however_the_rows_come():
    rows = torch.randn(1000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 1e-3 + 1e4
    moments = Moments(3)
    for part in rows.split([1, 400, 599]):
        moments.add(part)
    variance, mean = torch.var_mean(rows, dim=0, correction=0)
    torch.testing.assert_close(moments.mean, mean, rtol=1e-14, atol=0)
    torch.testing.assert_close(moments.variance(), variance, rtol=1e-6, atol=0)


def test_a_histogram_counts_exactly_whatever_the_order():
    values = np.random.default_rng(0).normal(0, [[0.01], [3.0]], (2, 500)).ravel()
    one, two = Histogram(), Histogram()
    one.add(values)
    for value in values[::-1]:
        two.add(np.array([value]))
    assert one.reach == two.reach == 2.0 ** math.ceil(math.log2(np.abs(values).max()))
    edges = np.linspace(-one.reach, one.reach, BINS + 1)
    assert one.counts.tolist() == two.counts.tolist() == np.histogram(values, edges)[0].tolist()


def test_a_histogram_takes_the_edges():
    found = Histogram()
    found.add(np.array([0.0, -1.0, 1.0, np.nextafter(1.0, 0), 0.0]))
    assert found.reach == 2.0
    assert found.counts.sum() == 5
    assert found.counts[BINS // 2] == 2
    assert found.counts[BINS // 4] == 1  # -1 begins a bin


def test_statistics_by_hand():
    """Two images, one channel of two positions and another that never changes."""
    mean = torch.tensor([[[1.0, 2.0], [0.5, 0.5]], [[3.0, 2.0], [0.5, 0.5]]])[:, :, None]  # (2, 2, 1, 2)
    log_variance = torch.full_like(mean, math.log(0.25))
    statistics = LatentStatistics()
    for index in (0, 1):
        part = mean[index : index + 1]
        statistics.add(Encoded(part, Gaussian(part, log_variance[index : index + 1])))
    found = statistics.values()
    first, second = found["channels"]
    assert (first["mean"], first["min"], first["max"]) == (2.0, 1.0, 3.0)
    assert first["std"] == pytest.approx(math.sqrt(0.5))
    assert first["scaling"] == pytest.approx(math.sqrt(2))
    assert (second["std"], second["scaling"], second["active"]) == (0.0, None, False)
    extra = 0.25 - 1 + math.log(4)  # of every element, beside the square of its mean
    assert first["kl"] == pytest.approx(0.5 * ((1 + 4 + 9 + 4) / 4 + extra))
    assert found["kl_per_image"] == pytest.approx(2 * (first["kl"] + second["kl"]))
    assert found["active"] == {"above": 0.01, "channels": 1, "units": 1, "of_units": 4}  # the 1 that becomes 3
    everything = mean.double()
    assert found["all"]["std"] == pytest.approx(everything.std(correction=0).item())
    assert found["all"]["mean"] == pytest.approx(everything.mean().item())
    assert [sum(each["counts"]) for each in found["histograms"]] == [4, 4]


def test_the_numbers_are_those_of_all_latents_together(flexvae, tiny_model, photos):
    found = measured(flexvae, tiny_model, photos)
    model = load_model(tiny_model)
    samples = read_samples(model, list_images(str(photos)), workers=0, report=print)
    with torch.inference_mode():
        z = torch.cat([model.encode(s.x[None])[0].flatten(1) for s in samples], dim=1).double()
    std, mean = torch.std_mean(z, dim=1, correction=0)
    assert [c["mean"] for c in found["channels"]] == pytest.approx(mean.tolist(), rel=1e-4, abs=1e-6)
    assert [c["std"] for c in found["channels"]] == pytest.approx(std.tolist(), rel=1e-5)
    assert [c["shift"] for c in found["channels"]] == [c["mean"] for c in found["channels"]]
    assert [c["max"] for c in found["channels"]] == pytest.approx(z.amax(1).tolist(), rel=1e-5)
    assert found["positions"] == z.shape[1]
    assert found["images"] == 5
    assert found["recorded"] == {"mean": [0.5, -0.5], "std": [2.0, 0.5]}
    assert found["active"]["units"] is None  # the photographs differ in size
    alike = measured(flexvae, tiny_model, photos, "--limit", 2)
    assert alike["active"]["of_units"] == 2 * 4 * 4


def test_the_batch_size_changes_nothing(flexvae, tiny_model, photos):
    one, two = (measured(flexvae, tiny_model, photos, "--batch-size", size) for size in (1, 8))
    for a, b in zip(one["channels"], two["channels"], strict=True):
        assert a == pytest.approx(b, rel=1e-5)
    assert one["histograms"][0]["low"] == two["histograms"][0]["low"]


def test_a_bundle_is_written_and_the_run_left_alone(flexvae, tiny_model, photos, tmp_path):
    before = {p: p.read_bytes() for p in Path(tiny_model).rglob("*") if p.is_file()}
    found = measured(flexvae, tiny_model, photos, "--write", tmp_path / "bundle")
    bundle = load_model(tmp_path / "bundle")
    assert bundle.description["latents"] == {key: [c[key] for c in found["channels"]] for key in ("mean", "std")}
    assert bundle.weights_hash == load_model(tiny_model).weights_hash
    assert {p: p.read_bytes() for p in Path(tiny_model).rglob("*") if p.is_file()} == before
    out = tmp_path / "latents"
    options = ("--latents", "normalized", "--workers", 0)
    assert flexvae("encode", tmp_path / "bundle", photos, out, *options).exit_code == 0
    normal = measured(flexvae, tmp_path / "bundle", photos)
    assert normal["recorded"] == bundle.description["latents"]


def test_a_place_that_is_taken_is_refused_before_the_work(flexvae, tiny_model, photos, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    refused = flexvae("stats", tiny_model, photos, "--write", tmp_path / "full")
    assert refused.exit_code == Exit.USAGE
    assert "is there already" in refused.stderr


def test_a_bottleneck_without_a_posterior_has_no_divergence(flexvae, make_model, photos, tmp_path):
    layers = ["C2d_3_3_1_1_0"]
    run = make_model(tmp_path / "run", encoder=layers, bottleneck="None", decoder=layers)
    result = flexvae("stats", run, photos, "--workers", 0)
    assert result.exit_code == 0, result.stderr
    assert "active: " in result.stdout
    assert "KL per image" not in result.stdout
    assert measured(flexvae, run, photos)["kl_per_image"] is None


def test_a_constant_channel_has_no_scaling(flexvae, make_model, photos, tmp_path):
    run = make_model(tmp_path / "run", change=lambda weights: [w.zero_() for w in weights.values()])
    found = measured(flexvae, run, photos, "--write", tmp_path / "bundle")
    assert [c["scaling"] for c in found["channels"]] == [None, None]
    assert found["active"]["channels"] == 0
    refused = flexvae("encode", tmp_path / "bundle", photos, tmp_path / "z", "--latents", "normalized")
    assert refused.exit_code == Exit.MODEL
    assert "deviation of 0 in latent channel 0" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["nothing", "photos"], Exit.MODEL, "no such model"),
        (["MODEL", "nothing"], Exit.DATA, "no such file or folder"),
        (["MODEL", "empty"], Exit.DATA, "no images in"),
    ],
)
def test_what_cannot_be_is_refused(flexvae, tiny_model, photos, tmp_path, monkeypatch, arguments, code, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    found = flexvae("stats", *[tiny_model if a == "MODEL" else a for a in arguments])
    assert found.exit_code == code
    assert words in found.stderr
