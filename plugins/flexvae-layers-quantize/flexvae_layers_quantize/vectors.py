"""Vector quantization: one codebook, several for the residuals of one another, or several for groups of channels."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from vector_quantize_pytorch.vector_quantize_pytorch import rotate_to

from flexvae_cli.api import Quantized
from flexvae_layers_quantize.codebook import Codebook, nearest
from flexvae_layers_quantize.positions import code_stats, grid, levels_used, passed, rows


class VectorQuantizer(nn.Module):
    """Every position becomes the sum of the nearest codes of its levels; groups of channels have levels of their own.

    Args:
        size: codes of each codebook.
        dim: channels.
        levels: codebooks one behind the other; each quantizes what those before it left over.
        groups: parts that the channels are cut into.
        dropout: the probability with which a training pass leaves out a random number of the last levels.
        commitment: weight of the squared distance from the input to its code, which moves the input.
        rotation: the gradient is turned and scaled as the code is from the input (Fifty et al., 2024); else it is
            passed on as it is.
        cosine, decay, revive, from_data: see `Codebook`.
    """

    def __init__(
        self,
        size: int,
        dim: int,
        *,
        levels: int = 1,
        groups: int = 1,
        dropout: float = 0.0,
        commitment: float,
        rotation: bool,
        cosine: bool = False,
        decay: float,
        revive: float,
        from_data: bool,
    ) -> None:
        super().__init__()
        self.size, self.levels, self.groups, self.dropout = size, levels, groups, dropout
        self.commitment, self.rotation, self.cosine = commitment, rotation, cosine
        self.codebooks = nn.ModuleList(
            Codebook(size, dim // groups, decay=decay, revive=revive, from_data=from_data, cosine=cosine)
            for _ in range(groups * levels)
        )

    @property
    def bits(self) -> float:
        """What one index costs where all codes are equally likely."""
        return math.log2(self.size)

    def forward(self, x: Tensor) -> Quantized:
        flat = rows(x.float())  # (n, c)
        levels = levels_used(self.levels, self.dropout if self.training else 0.0)
        flat = F.normalize(flat, dim=1) if self.cosine else flat
        parts = [self._group(number, part, levels) for number, part in enumerate(flat.chunk(self.groups, dim=1))]
        total = torch.cat([part[0] for part in parts], dim=1)  # (n, c)
        indices = torch.cat([part[1] for part in parts], dim=1)  # (n, groups * levels)
        distance = torch.stack([part[2] for part in parts]).mean()
        surrogate = rotate_to(flat, total) if self.rotation else flat
        y = passed(total, surrogate)
        stats = {**code_stats(indices, self.size), **self._revived()}
        return Quantized(grid(y, x).to(x.dtype), self.commitment * distance, grid(indices, x), stats)

    def _revived(self) -> dict[str, Tensor]:
        """How many dead codes of all codebooks the step before replaced; nothing where none can be."""
        books = [cast(Codebook, book) for book in self.codebooks if book.training]
        counts = [book.revived for book in books if book.revive]
        return {"revived": torch.stack(counts).sum().float()} if counts else {}

    def _group(self, number: int, flat: Tensor, levels: int) -> tuple[Tensor, Tensor, Tensor]:
        """Rows (n, c') -> the sum of their codes, indices (n, levels) and the mean squared distance over the levels."""
        indices = torch.full((len(flat), self.levels), -1, device=flat.device)
        total, distances = torch.zeros_like(flat), []
        for level in range(levels):
            codes, indices[:, level] = self.codebooks[number * self.levels + level](flat - total)
            distances.append(F.mse_loss(flat - total, codes))
            total = total + codes
        return total, indices, torch.stack(distances).mean()

    def from_indices(self, indices: Tensor) -> Tensor:
        """Indices (b, groups * levels, *space) -> (b, c, *space), the levels added in order; -1 adds nothing."""
        flat, parts = rows(indices), []
        for number in range(self.groups):
            total: Tensor | None = None
            for level in range(self.levels):
                at = number * self.levels + level
                book, index = cast(Codebook, self.codebooks[at]), flat[:, at]
                codes = book.codes.float()[index.clamp(min=0)]
                codes = torch.where(index[:, None] >= 0, codes, 0.0)
                total = codes if total is None else total + codes
            parts.append(cast(Tensor, total))
        return grid(torch.cat(parts, dim=1), indices)


class SimpleVectorQuantizer(nn.Module):
    """A fixed random codebook behind one trained linear map, so that all codes move together (Zhu et al., 2024).

    Args:
        size: codes.
        dim: channels.
        commitment: weight of the distance that moves the input, beside that which moves the codes.
        rotation: see `VectorQuantizer`.
    """

    frozen: Tensor

    def __init__(self, size: int, dim: int, *, commitment: float, rotation: bool) -> None:
        super().__init__()
        self.size, self.commitment, self.rotation = size, commitment, rotation
        self.register_buffer("frozen", torch.randn(size, dim) * dim**-0.5)
        self.map = nn.Linear(dim, dim, bias=False)

    @property
    def bits(self) -> float:
        """What one index costs where all codes are equally likely."""
        return math.log2(self.size)

    @property
    def codes(self) -> Tensor:
        """(size, dim), float32."""
        return self.frozen.float() @ self.map.weight.float().T

    def forward(self, x: Tensor) -> Quantized:
        flat, codes = rows(x.float()), self.codes
        with torch.no_grad():
            indices = nearest(flat, codes)
        chosen = codes[indices]  # (n, c)
        loss = F.mse_loss(chosen, flat.detach()) + self.commitment * F.mse_loss(flat, chosen.detach())
        y = passed(chosen.detach(), rotate_to(flat, chosen) if self.rotation else flat)
        stats = code_stats(indices[:, None], self.size)
        return Quantized(grid(y, x).to(x.dtype), loss, grid(indices[:, None], x), stats)

    def from_indices(self, indices: Tensor) -> Tensor:
        """Indices (b, 1, *space) -> (b, c, *space)."""
        return grid(self.codes[rows(indices)[:, 0]], indices)
