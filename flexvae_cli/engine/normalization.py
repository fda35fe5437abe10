"""Raw latents, as the decoder takes them, and normalized ones: mean 0 and deviation 1 in every channel."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flexvae_cli.api.trace import text
from flexvae_cli.errors import ModelError, UsageError


@dataclass(frozen=True, slots=True)
class Normalization:
    """`normalized = (raw - mean) / std`, channel by channel.

    Attributes:
        mean, std: a number per channel, finite; the deviations are above 0.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, statistics: Any, channels: int, where: str, hint: str = "") -> Normalization:
        """The normalization that statistics stand for.

        Args:
            statistics: `mean` and `std`, a list of numbers each, as models and manifests have them; untrusted.
            channels: of the latent.
            where: the file that they come from, for the message.
            hint: what to type instead.

        Raises:
            ModelError: there are none, or none that can be undone.
        """
        if not statistics:
            raise ModelError("carries no latent statistics", where=where, hint=hint)
        if not isinstance(statistics, dict) or not all(_are_numbers(statistics.get(key)) for key in ("mean", "std")):
            raise ModelError("has latent statistics that are not 'mean' and 'std' of numbers", where=where, hint=hint)
        mean, std = (tuple(map(float, statistics[key])) for key in ("mean", "std"))
        if not len(mean) == len(std) == channels:
            what = f"has latent statistics of {len(mean)} means and {len(std)} deviations, not of {channels} channels"
            raise ModelError(what, where=where, hint=hint)
        if any(not _can_be_undone(each) for each in std):
            bad = next(index for index, each in enumerate(std) if not _can_be_undone(each))
            what = f"has a deviation of {std[bad]:g} in latent channel {bad}, which cannot be normalized"
            raise ModelError(what, where=where, hint=hint)
        return cls(mean, std)

    def statistics(self) -> dict[str, Any]:
        """The numbers as models and manifests have them."""
        return {"mean": list(self.mean), "std": list(self.std)}

    def normalized(self, raw: Tensor) -> Tensor:
        """Raw latents (b, c, *space) -> normalized ones in the same type; computed in float64."""
        mean, std = self._columns(raw)
        return ((raw.double() - mean) / std).to(raw.dtype)

    def raw(self, normalized: Tensor) -> Tensor:
        """The way back, equal within the rounding of the type."""
        mean, std = self._columns(normalized)
        return (normalized.double() * std + mean).to(normalized.dtype)

    def narrowed(self, deviation: Tensor) -> Tensor:
        """Deviations of raw latents, (b, c, *space), as those of normalized ones: divided, and not shifted."""
        return (deviation.double() / self._columns(deviation)[1]).to(deviation.dtype)

    def widened(self, deviation: Tensor) -> Tensor:
        """The way back from `narrowed`."""
        return (deviation.double() * self._columns(deviation)[1]).to(deviation.dtype)

    def _columns(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation as float64 (c, 1, 1), with a 1 for each axis of space.

        Raises:
            UsageError: the second axis is not that of the channels.
        """
        if like.dim() < 2 or like.shape[1] != len(self.mean):
            there = text(tuple(like.shape)) or "a number"
            what = f"latents want to be a batch of {len(self.mean)} channels, not {there}"
            raise UsageError(what, hint="give (b, c, *space), one sample z as z[None]")
        shape = (-1, *(1 for _ in like.shape[2:]))
        mean, std = (torch.tensor(each, dtype=torch.float64, device=like.device) for each in (self.mean, self.std))
        return mean.view(shape), std.view(shape)


def _are_numbers(values: Any) -> bool:
    return isinstance(values, list) and all(type(each) in (int, float) and math.isfinite(each) for each in values)


def _can_be_undone(std: float) -> bool:
    """Whether float32 has room for the deviation and its inverse."""
    return 1e-30 < std < 1e30
