"""`check_layer` passes a sound quantizer and names each defect that is planted in one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flexvae_cli.api import LayerSpec, Quantized, layer, same
from flexvae_cli.api.testing import check_bottleneck, check_layer


class Halves(nn.Module):
    """Rounds to multiples of 1/2, from -4 to 3.5, and counts what it saw."""

    bits = 4.0
    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Any:
        indices = torch.round(x.detach().float() * 2).nan_to_num(0).clamp(-8, 7).long() + 8
        if self.training:
            self.seen += torch.where(x.isfinite().all(), x.detach().mean(), 0).to(self.seen.dtype)
        y = self.from_indices(indices).to(x.dtype)
        return Quantized(y + (x - x.detach()), x.square().mean() * 0, indices, {"seen": self.seen.clone()})

    def from_indices(self, indices: Tensor) -> Tensor:
        return (indices - 8) / 2


class Leaves(Halves):
    def forward(self, x: Tensor) -> Any:
        self.seen += x.detach().mean().to(self.seen.dtype)
        return super().forward(x)


class Hides(Halves):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x.nan_to_num(0))


class Differs(Halves):
    def from_indices(self, indices: Tensor) -> Tensor:
        return (indices - 8) / 2 + torch.rand(()).item()


class Costs(Halves):
    bits = 2.0


class Gives(Halves):
    def forward(self, x: Tensor) -> Any:
        y = super().forward(x)
        return y._replace(indices=y.indices.float())


class Flattens(Halves):
    def forward(self, x: Tensor) -> Any:
        y = super().forward(x)
        return y._replace(indices=y.indices.flatten(1))


class Lists(Halves):
    def forward(self, x: Tensor) -> Any:
        y = super().forward(x)
        return y._replace(stats={"all": x.detach()})


def spec_of(module: type[nn.Module]) -> LayerSpec:
    @layer("Halves", trace=same, quantizes=True)
    def halves() -> nn.Module:
        """Multiples of a half.

        Examples:
            Halves: 3x6x5 -> 3x6x5
        """
        return module()

    return halves


def test_a_sound_quantizer_passes() -> None:
    check_layer(spec_of(Halves))
    check_bottleneck(spec_of(Halves).as_bottleneck())


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Leaves, "leaves its traces in seen"),
        (Hides, "hides inputs that are not finite"),
        (Differs, "from_indices(indices) is not its output"),
        (Costs, "do not fit in the 2 bits"),
        (Gives, "its indices are torch.float32"),
        (Flattens, "its indices are 2x90"),
        (Lists, "its all is no finite scalar"),
    ],
)
def test_a_defect_of_a_quantizer_is_named(module: type[nn.Module], message: str) -> None:
    with pytest.raises(AssertionError) as caught:
        check_layer(spec_of(module))
    assert message in str(caught.value)
