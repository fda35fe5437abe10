"""A codebook that follows its inputs: running means of what its codes stand for (arXiv:1711.00937, appendix A)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from flexvae_layers_quantize.settling import Settling, processes

LEAST = 1e-6  # of a running count, below which a code stays where it is


def nearest(flat: Tensor, codes: Tensor) -> Tensor:
    """The code (rows,) with the smallest distance to each row; (rows, d) and (codes, d) of float32."""
    distances = codes.square().sum(1) - 2 * flat @ codes.T  # squared, less what is the same for all codes
    return distances.argmin(1)


class Codebook(Settling):
    """Codes (size, dim) that are the means of the rows assigned to them.

    The means run with `decay`, and as plain means over the steps until then: with `from_data` the first step's rows are
    the first codes, and the steps behind it refine them as mini-batch k-means does (Sculley, 2010).

    Attributes:
        revived: how many codes the last step replaced.

    Args:
        size: number of codes.
        dim: of one.
        decay: of the running means, for each step.
        revive: a code that is used less than this part of an even share is replaced by a row of the step; 0 for never.
        from_data: start from the rows of the first step, which passes unquantized.
        cosine: rows and codes are of length 1.
    """

    codes: Tensor
    sums: Tensor
    counts: Tensor
    age: Tensor
    revived: Tensor
    step_sums: Tensor
    step_counts: Tensor
    spare: Tensor
    spare_there: Tensor

    def __init__(self, size: int, dim: int, *, decay: float, revive: float, from_data: bool, cosine: bool) -> None:
        super().__init__()
        self.size, self.decay, self.revive, self.from_data, self.cosine = size, decay, revive, from_data, cosine
        codes = torch.randn(size, dim)
        codes = F.normalize(codes, dim=1) if cosine else codes
        self.register_buffer("codes", codes)
        self.register_buffer("sums", codes.clone())
        self.register_buffer("counts", torch.ones(size))
        self.register_buffer("age", torch.zeros((), dtype=torch.int64))  # steps
        self.register_buffer("revived", torch.zeros((), dtype=torch.int64))
        self.register_buffer("step_sums", torch.zeros(size, dim), persistent=False)
        self.register_buffer("step_counts", torch.zeros(size), persistent=False)
        self.register_buffer("spare", torch.zeros(size, dim), persistent=False)
        self.register_buffer("spare_there", torch.zeros(size), persistent=False)

    def forward(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """Rows (n, dim), float32, -> their codes (n, dim), without a gradient, and indices (n,).

        Before there are codes made from data, training sees the rows themselves in the place of codes.
        """
        codes = self.codes.to(flat.dtype)
        with torch.no_grad():
            indices = nearest(flat, codes)
            if self.training:
                self._collect(flat, indices)
            chosen = codes[indices]
            if self.training and self.from_data:
                chosen = torch.where(self.age == 0, flat.detach(), chosen)
        return chosen, indices

    def _collect(self, flat: Tensor, indices: Tensor) -> None:
        rank, world = processes()
        # of rows that are broken, or that an earlier codebook does not leave over yet, nothing is remembered
        sound = flat.isfinite().all() & flat.any()
        flat = torch.where(sound, flat, 0.0).to(self.codes.dtype)
        weight = (sound * world).to(flat.dtype)
        ones = torch.ones_like(flat[:, 0])
        self.step_counts += weight * torch.zeros_like(self.counts).index_add_(0, indices, ones)
        self.step_sums += weight * torch.zeros_like(self.sums).index_add_(0, indices, flat)
        slots = torch.arange(rank, self.size, world, device=flat.device)  # each process has its own
        picked = torch.randperm(len(flat), device=flat.device)[: len(slots)]
        slots = slots[: len(picked)]
        self.spare.zero_()[slots] = weight * flat[picked]
        self.spare_there.zero_()[slots] = weight

    @torch.no_grad()
    def settle(self) -> None:
        some = self.step_counts.sum() > 0
        there = self.spare_there > 0.5
        starts = some & (self.age == 0) & self.from_data
        codes, sums, counts = self._moved()
        dead, row = self._dead(counts, there)
        codes, sums, counts = self._with_new(dead, row, codes, sums, counts)
        seeded = torch.where(there[:, None], self.spare, self.codes)
        self._take(some, codes, sums, counts)
        self._take(starts, seeded, seeded, torch.ones_like(counts))
        self.revived.copy_(torch.where(some, torch.where(starts, 0, dead.sum()), self.revived))
        self.age += some
        for buffer in (self.step_sums, self.step_counts, self.spare, self.spare_there):
            buffer.zero_()

    def _moved(self) -> tuple[Tensor, Tensor, Tensor]:
        """Codes, sums and counts with the step's rows."""
        age = self.age.to(self.codes.dtype)
        keep = (age / (age + 1)).clamp(max=self.decay)
        counts = keep * self.counts + (1 - keep) * self.step_counts
        sums = keep * self.sums + (1 - keep) * self.step_sums
        codes = torch.where(counts[:, None] > LEAST, sums / counts.clamp(min=LEAST)[:, None], self.codes)
        return self._shaped(codes), sums, counts

    def _dead(self, counts: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
        """Which codes are dead and can be replaced, and the spare row for each: the first for the first, and so on."""
        dead = counts < self.revive * counts.mean()
        row = (dead.cumsum(0) - 1).clamp(min=0)
        return dead & there[row], row

    def _with_new(
        self, dead: Tensor, row: Tensor, codes: Tensor, sums: Tensor, counts: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Codes, sums and counts with spare rows, as often used as the mean, in the place of dead codes."""
        mean = counts.mean()
        codes = torch.where(dead[:, None], self.spare[row], codes)
        counts = torch.where(dead, mean, counts)
        return codes, torch.where(dead[:, None], codes * mean, sums), counts

    def _shaped(self, codes: Tensor) -> Tensor:
        return F.normalize(codes, dim=1) if self.cosine else codes

    def _take(self, when: Tensor, codes: Tensor, sums: Tensor, counts: Tensor) -> None:
        for buffer, value in ((self.codes, codes), (self.sums, sums), (self.counts, counts)):
            buffer.copy_(torch.where(when, value, buffer))
