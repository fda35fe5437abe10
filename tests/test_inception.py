"""rFID: the net, how images come to it, and the distance of their features."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import Inception3

from flexvae_cli.engine.evaluation.frechet import frechet_distance
from flexvae_cli.engine.evaluation.inception import Inception, resized
from flexvae_cli.errors import Exit, ModelError

PUBLISHED = [21.9144, 14.2223, 0.0, 0.792881, 0.00228270, 0.425613, 0.0, 0.0, 0.610746, 25.1886]
"""Every 226th feature of torch-fidelity 0.4.0, its net given the weights of `weights`, for `picture`."""


@pytest.fixture(scope="session")
def weights(tmp_path_factory) -> Path:
    """Weights of the right names and shapes, made by a formula."""
    with torch.device("meta"):
        net = Inception3(num_classes=1008, aux_logits=False, init_weights=False)
    made = {}
    for place, (name, value) in enumerate(sorted(net.state_dict().items())):
        if name.startswith("fc.") or name.endswith("num_batches_tracked"):
            continue
        wave = torch.sin(torch.arange(value.numel()) * 0.7 + place).view(value.shape)
        if value.dim() == 4:
            wave *= 1.5 / math.sqrt(value[0].numel())
        elif name.endswith("running_var"):
            wave = wave.abs() + 0.5
        made[name] = wave if value.dim() == 4 or name.endswith("running_var") else 0.1 * wave + name.endswith("weight")
    path = tmp_path_factory.mktemp("inception") / "inception.safetensors"
    save_file(made, path)
    return path


def picture() -> torch.Tensor:
    """(3, 40, 70) in [-1, 1], on the levels of 8 bits."""
    levels = torch.arange(3 * 40 * 70).mul(37).remainder(256).view(3, 40, 70)
    return levels / 127.5 - 1


def test_the_features_are_those_of_torch_fidelity(weights):
    features = Inception(weights, torch.device("cpu"))([picture()])
    assert features.shape == (1, 2048)
    assert features[0, 7::226].tolist() == pytest.approx(PUBLISHED, rel=1e-3, abs=1e-3)
    assert features.std() > 0.01


def test_images_of_any_size_and_colour_come_together(weights):
    net = Inception(weights, torch.device("cpu"))
    grey = picture()[:1]
    both = net([grey, picture()[:, :20]])
    torch.testing.assert_close(both[:1], net([grey.expand(3, -1, -1)]), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(both[0], both[1])


def test_a_file_that_lacks_weights_is_refused(tmp_path):
    save_file({"Conv2d_1a_3x3.conv.weight": torch.zeros(32, 3, 3, 3)}, tmp_path / "some.safetensors")
    with pytest.raises(ModelError, match="should be 32, and the file has none") as refused:
        Inception(tmp_path / "some.safetensors", torch.device("cpu"))
    assert "flexvae import-pt" in refused.value.problems[0].hint


def test_resizing_reads_at_multiples_of_the_scale():
    row = torch.tensor([0.0, 8.0]).view(1, 1, 1, 2)
    assert resized(row, 4)[0, 0, 0].tolist() == [0, 4, 8, 8]
    ramp = torch.arange(6.0).view(1, 1, 6, 1)
    assert resized(ramp, 3)[0, 0, :, 0].tolist() == [0, 2, 4]
    assert resized(torch.rand(1, 2, 299, 299), 299).shape == (1, 2, 299, 299)


def test_the_distance_of_two_normals_of_one_dimension():
    a, b = torch.tensor([[0.0], [2.0]]), torch.tensor([[5.0], [5.0], [11.0]])  # variances 2 and 12, means 1 and 7
    assert frechet_distance(a, b) == pytest.approx(36 + (math.sqrt(2) - math.sqrt(12)) ** 2)
    assert frechet_distance(a, a + 3) == pytest.approx(9)


@pytest.mark.parametrize(("n", "m"), [(5, 9), (40, 50), (5, 50)])
def test_the_distance_is_that_of_the_definition(n, m):
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=(n, 12)), generator.normal(0.5, 2, (m, 12)) @ generator.normal(size=(12, 12))
    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = np.sqrt(np.linalg.eigvals(first @ second).astype(complex)).real.sum()
    apart = a.mean(0) - b.mean(0)
    expected = apart @ apart + np.trace(first) + np.trace(second) - 2 * root
    assert frechet_distance(torch.tensor(a), torch.tensor(b)) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(torch.tensor(a), torch.tensor(a)) == pytest.approx(0, abs=1e-9)


def test_eval_measures_it_where_weights_are_given(flexvae, tiny_model, photos, weights, tmp_path):
    command = ("eval", tiny_model, photos / "b", "--workers", 0, "--inception", weights)
    done = flexvae(*command, "--json", "--output", tmp_path / "a")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["rfid"] > 0
    assert "TensorFlow 1" in found["protocol"]["rfid"]
    assert "rFID" in flexvae("compare", tmp_path / "a", tmp_path / "a").stdout
    one = flexvae("eval", tiny_model, photos / "e", "--workers", 0, "--inception", weights)
    assert "rFID: not measured (it takes two images or more)" in one.stderr
    refused = flexvae("eval", tiny_model, photos, "--inception", photos / "a.png")
    assert refused.exit_code == Exit.MODEL
