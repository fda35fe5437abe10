from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from flexvae_cli.engine.metrics import Scores, mean_scores, metrics_of, psnr, scores, ssim, to_unit


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def ssim_by_hand(a: np.ndarray, b: np.ndarray) -> float:
    """Wang et al. (2004), window by window, channel by channel."""
    offsets = np.arange(11) - 5
    row = np.exp(-(offsets**2) / (2 * 1.5**2))
    window = np.outer(row, row) / row.sum() ** 2
    c1, c2, values = 0.01**2, 0.03**2, []
    for x, y in zip(a, b, strict=True):
        for top in range(x.shape[0] - 10):
            for left in range(x.shape[1] - 10):
                p, q = (plane[top : top + 11, left : left + 11] for plane in (x, y))
                mean_p, mean_q = (window * p).sum(), (window * q).sum()
                var_p, var_q = (window * p * p).sum() - mean_p**2, (window * q * q).sum() - mean_q**2
                cov = (window * p * q).sum() - mean_p * mean_q
                values.append(
                    (2 * mean_p * mean_q + c1) * (2 * cov + c2) / ((mean_p**2 + mean_q**2 + c1) * (var_p + var_q + c2))
                )
    return float(np.mean(values))


def test_psnr_is_that_of_the_mean_squared_error():
    a, b = noise(3, 5, 7), noise(3, 5, 7, seed=1)
    error = sum((float(x) - float(y)) ** 2 for x, y in zip(a.flatten(), b.flatten(), strict=True)) / a.numel()
    assert psnr(a, b) == pytest.approx(10 * math.log10(1 / error), rel=1e-9)
    assert psnr(torch.zeros(1, 2, 2), torch.full((1, 2, 2), 0.1)) == pytest.approx(20, abs=1e-5)


def test_ssim_is_that_of_the_paper():
    a, b = noise(3, 14, 13), noise(3, 14, 13, seed=1)
    mixed = 0.7 * a + 0.3 * b
    assert ssim(a, mixed) == pytest.approx(ssim_by_hand(a.double().numpy(), mixed.double().numpy()), abs=1e-5)


def test_identical_images_are_infinitely_near():
    x = noise(3, 12, 12) * 2 - 1
    found = scores(x, x)
    assert found.psnr == math.inf
    assert found.ssim == pytest.approx(1)


@pytest.mark.parametrize("size", [(10, 40), (40, 10), (1, 1)])
def test_an_image_smaller_than_the_window_has_no_ssim(size):
    x = noise(3, *size)
    assert scores(x, -x).ssim is None
    assert scores(noise(3, 11, 11), noise(3, 11, 11, seed=1)).ssim is not None


def test_values_beyond_the_range_are_clamped():
    assert to_unit(torch.tensor([-3.0, -1.0, 0.0, 1.0, 7.0])).tolist() == [0, 0, 0.5, 1, 1]
    one = torch.ones(1, 12, 12)
    assert scores(one, 5 * one).psnr == math.inf


def test_means_leave_out_what_has_no_value():
    assert mean_scores([Scores(20, 0.5), Scores(30, None), Scores(math.inf, 1.0)]) == Scores(25, 0.75)
    assert mean_scores([Scores(math.inf, None)]) == Scores(None, None)


def test_infinity_is_null_in_json():
    value = metrics_of([("a", "a.png", (2, 3), Scores(math.inf, None)), ("b", "b.png", (2, 3), Scores(20.0, 0.5))], x=1)
    assert value["x"] == 1
    assert (value["count"], value["identical"], value["mean"]) == (2, 1, {"psnr": 20.0, "ssim": 0.5})
    assert value["images"][0] == {
        "name": "a", "output": "a.png", "size": [2, 3], "psnr": None, "ssim": None, "identical": True,
    }  # fmt: skip
