"""Scalar quantization: numbers are rounded one by one, and an index is their digits together."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from vector_quantize_pytorch import FSQ

from flexvae_cli.api import Quantized
from flexvae_layers_quantize.positions import code_stats, grid, levels_used, passed, rows
from flexvae_layers_quantize.settling import Settling, processes


class FiniteScalarQuantizer(nn.Module):
    """Finite scalar quantization (Mentzer et al., 2023, arXiv:2309.15505): each channel is bounded and rounded."""

    def __init__(self, levels: Sequence[int]) -> None:
        super().__init__()
        self.size = math.prod(levels)
        self.inner = FSQ(levels=list(levels), return_indices=False)

    @property
    def bits(self) -> float:
        """What one index costs where all codes are equally likely."""
        return math.log2(self.size)

    def forward(self, x: Tensor) -> Quantized:
        codes = self.inner.quantize(rows(x.float()))  # (n, c), with a straight-through gradient
        indices = self.inner.codes_to_indices(codes.detach()).clamp(0, self.size - 1).long()[:, None]  # (n, 1)
        y = grid(passed(self._codes(indices), codes), x)
        return Quantized(y.to(x.dtype), None, grid(indices, x), code_stats(indices, self.size))

    def _codes(self, indices: Tensor) -> Tensor:
        codes: Tensor = self.inner.indices_to_codes(indices[:, 0])  # (n,) -> (n, c)
        return codes

    def from_indices(self, indices: Tensor) -> Tensor:
        """Indices (b, 1, *space) -> (b, c, *space)."""
        return grid(self._codes(rows(indices)), indices)


class ResidualFiniteScalarQuantizer(nn.Module):
    """Finite scalar quantizers one behind the other, each with a finer grid for what those before it left over.

    Args:
        levels: values of each channel.
        quantizers: how many; the grid of number k is levels^k times finer than that of the first.
        dropout: the probability with which a training pass leaves out a random number of the last ones.
    """

    def __init__(self, levels: Sequence[int], quantizers: int, dropout: float) -> None:
        super().__init__()
        self.levels, self.size = tuple(levels), math.prod(levels)
        self.quantizers, self.dropout = quantizers, dropout
        self.inner = FSQ(levels=list(levels), return_indices=False, preserve_symmetry=True, bound_hard_clamp=True)

    @property
    def bits(self) -> float:
        """What one index costs where all codes are equally likely."""
        return math.log2(self.size)

    def forward(self, x: Tensor) -> Quantized:
        flat = rows(x.float())  # (n, c)
        levels = flat.new_tensor(self.levels)
        edge = 1 + 1 / (levels - 1)  # half a step beyond the outermost codes
        residual = (flat / edge).tanh() * edge
        total, indices = torch.zeros_like(flat), torch.full((len(flat), self.quantizers), -1, device=flat.device)
        for number in range(levels_used(self.quantizers, self.dropout if self.training else 0.0)):
            finer = levels**number
            codes = self.inner.quantize(residual * finer)  # with a straight-through gradient
            indices[:, number] = self.inner.codes_to_indices(codes.detach()).clamp(0, self.size - 1)
            total = total + codes / finer
            residual = residual - (codes / finer).detach()
        y = grid(passed(self._codes(indices), total), x)
        return Quantized(y.to(x.dtype), None, grid(indices, x), code_stats(indices, self.size))

    def _codes(self, indices: Tensor) -> Tensor:
        """(n, quantizers) -> (n, c)."""
        levels = torch.tensor(self.levels, device=indices.device, dtype=torch.float32)
        total = torch.zeros(len(indices), len(self.levels), device=indices.device)
        for number, index in enumerate(indices.unbind(1)):
            codes = self.inner.indices_to_codes(index.clamp(min=0)) / levels**number
            total = total + torch.where(index[:, None] >= 0, codes, 0.0)
        return total

    def from_indices(self, indices: Tensor) -> Tensor:
        """Indices (b, quantizers, *space) -> (b, c, *space); -1 adds nothing."""
        return grid(self._codes(rows(indices)), indices)


class BinaryQuantizer(nn.Module):
    """Every channel becomes its sign: lookup-free quantization or, on the unit sphere, binary spherical quantization.

    The loss asks every position to be sure of its signs, and all positions together to use all codes alike: the entropy
    of a position's signs less that of the mean over all positions, the latter for `group` neighbouring channels at a
    time, in nats.

    Args:
        dim: channels, which are the bits of an index.
        spherical: vectors and codes have length 1.
        entropy: weight of the entropies.
        diversity: weight of the second entropy within these.
        commitment: weight of the squared distance from the input to its code.
        group: channels whose signs are counted together.
    """

    powers: Tensor

    def __init__(
        self, dim: int, *, spherical: bool, entropy: float, diversity: float, commitment: float, group: int
    ) -> None:
        super().__init__()
        self.dim, self.spherical, self.group = dim, spherical, group
        self.entropy, self.diversity, self.commitment = entropy, diversity, commitment
        self.scale = dim**-0.5 if spherical else 1.0
        self.register_buffer("powers", 2 ** torch.arange(dim), persistent=False)

    @property
    def bits(self) -> float:
        """What one index costs."""
        return float(self.dim)

    def forward(self, x: Tensor) -> Quantized:
        flat = rows(x.float())
        flat = F.normalize(flat, dim=1) if self.spherical else flat
        indices = ((flat > 0) * self.powers).sum(1, keepdim=True)  # (n, 1)
        codes = self._codes(indices)
        loss = self.entropy * self._entropies(flat) + self.commitment * F.mse_loss(flat, codes)
        y = grid(passed(codes, flat), x)
        return Quantized(y.to(x.dtype), loss, grid(indices, x), code_stats(indices, 2**self.dim))

    def _entropies(self, flat: Tensor) -> Tensor:
        # softmax over all codes of -distance^2, in units of the codes' own size: signs are independent of each other
        sure = torch.sigmoid(4 * flat / self.scale)  # (n, c), the probability of a plus
        each = (_entropy_terms(sure) + _entropy_terms(1 - sure)).sum(1).mean()
        together = torch.stack([_entropy_of_mean(part) for part in sure.split(self.group, dim=1)]).sum()
        return each - self.diversity * together

    def _codes(self, indices: Tensor) -> Tensor:
        signs = (indices // self.powers) % 2  # (n, c)
        return (2 * signs - 1).float() * self.scale

    def from_indices(self, indices: Tensor) -> Tensor:
        """Indices (b, 1, *space) -> (b, c, *space)."""
        return grid(self._codes(rows(indices)), indices)


def _entropy_of_mean(sure: Tensor) -> Tensor:
    """The entropy in nats of the mean over rows (n, g) of the joint distribution of g independent signs."""
    joint = torch.ones_like(sure[:, :1])  # (n, 1), (n, 2), (n, 4), ...
    for plus in sure.split(1, dim=1):
        joint = torch.cat([joint * (1 - plus), joint * plus], dim=1)
    return _entropy_terms(joint.mean(0)).sum()


def _entropy_terms(p: Tensor) -> Tensor:
    """-p log p, with a finite gradient at 0 (that of `torch.special.entr` is infinite)."""
    return -p * (p + 1e-10).log()


class FixedPointQuantizer(Settling):
    """Numbers are rounded to 2^bits steps between a running least and greatest, as fixed-point hardware has them.

    Gradients pass through where a number lies in that range. In the first step it is that of the batch.

    Args:
        bits: of a number.
        decay: of the running range, for each step; until then it is the plain mean over the steps.
    """

    low: Tensor
    high: Tensor
    age: Tensor
    step_low: Tensor
    step_high: Tensor
    step_weight: Tensor

    def __init__(self, bits: int, decay: float) -> None:
        super().__init__()
        self.bits, self.decay = bits, decay
        self.register_buffer("low", torch.tensor(-1.0))
        self.register_buffer("high", torch.tensor(1.0))
        self.register_buffer("age", torch.zeros((), dtype=torch.int64))  # steps
        for name in ("step_low", "step_high", "step_weight"):
            self.register_buffer(name, torch.zeros(()), persistent=False)

    def forward(self, x: Tensor) -> Quantized:
        full = x.float()
        low, high = self.low.float(), self.high.float()
        if self.training:
            least, most = full.detach().aminmax()
            low, high = torch.where(self.age == 0, least, low), torch.where(self.age == 0, most, high)
            self._collect(least, most)
        step = self._step(low, high)
        inside = full.clamp(low, high)
        indices = torch.round((inside.detach() - low) / step).nan_to_num(0).clamp(0, 2**self.bits - 1).long()
        y = passed(indices * step + low, inside)
        return Quantized(y.to(x.dtype), None, indices, code_stats(indices.flatten()[:, None], 2**self.bits))

    def _step(self, low: Tensor, high: Tensor) -> Tensor:
        return (high - low).clamp(min=1e-8) / (2**self.bits - 1)

    @torch.no_grad()
    def _collect(self, least: Tensor, most: Tensor) -> None:
        sound = least.isfinite() & most.isfinite()
        weight = (sound * processes()[1]).to(self.low.dtype)
        self.step_low += weight * torch.where(sound, least, 0.0)
        self.step_high += weight * torch.where(sound, most, 0.0)
        self.step_weight += weight

    @torch.no_grad()
    def settle(self) -> None:
        some = self.step_weight > 0
        age = self.age.to(self.low.dtype)
        keep = torch.where(some, (age / (age + 1)).clamp(max=self.decay), 1.0)
        for buffer, total in ((self.low, self.step_low), (self.high, self.step_high)):
            buffer.copy_(keep * buffer + (1 - keep) * total / self.step_weight.clamp(min=1))
        self.age += some
        for buffer in (self.step_low, self.step_high, self.step_weight):
            buffer.zero_()

    def from_indices(self, indices: Tensor) -> Tensor:
        """Indices (b, c, *space) -> numbers (b, c, *space)."""
        low, high = self.low.float(), self.high.float()
        return indices * self._step(low, high) + low
