"""Activations with learned frequencies are their formulas."""

from __future__ import annotations

import pytest
import torch
from flexvae_layers_extra import plugin
from torch import Tensor

SPECS = {spec.name: spec for spec in plugin.flexvae_layers()}


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


@pytest.mark.parametrize("shape", [(2, 3, 7), (2, 3, 4, 5)], ids=["1-D", "2-D"])
def test_snakes_are_their_formulas(shape: tuple[int, ...]) -> None:
    x = noise(*shape)
    a, b = torch.tensor([0.5, 1.0, 2.0]).double(), torch.tensor([2.0, 0.5, 1.0]).double()
    wide = (3, *[1] * (len(shape) - 2))
    plain, beta = SPECS["Snake"](3).double(), SPECS["SnakeB"](3).double()
    with torch.no_grad():
        plain.alpha.copy_(a)
        beta.alpha.copy_(a.log())
        beta.beta.copy_(b.log())
    torch.testing.assert_close(plain(x), x + torch.sin(a.view(wide) * x) ** 2 / a.view(wide))
    torch.testing.assert_close(beta(x), x + torch.sin(a.view(wide) * x) ** 2 / b.view(wide))
