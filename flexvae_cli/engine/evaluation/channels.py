"""What the latents of a data set look like, channel by channel, in one pass."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from flexvae_cli.engine.evaluation.histogram import Histogram
from flexvae_cli.engine.evaluation.rate import gaussian_kl
from flexvae_cli.engine.inference import BATCH_SIZE, Sample, encoded_batch, require_finite, runs

if TYPE_CHECKING:
    from flexvae_cli.api import Encoded
    from flexvae_cli.engine.model import Model

ACTIVE = 0.01  # least variance of an active unit, arXiv:1509.00519


class Moments:
    """Count, mean and sum of squared deviations of columns, gathered batch by batch (Chan et al., 1983).

    Args:
        columns: how many columns there are.
    """

    def __init__(self, columns: int) -> None:
        self.count = 0
        self.mean = torch.zeros(columns, dtype=torch.float64)
        self.squares = torch.zeros(columns, dtype=torch.float64)

    def add(self, rows: Tensor) -> None:
        """Take in float64 (n, columns)."""
        n, mean = len(rows), rows.mean(0)
        total = self.count + n
        away = mean - self.mean
        self.squares += (rows - mean).square().sum(0) + away.square() * (self.count * n / total)
        self.mean += away * (n / total)
        self.count = total

    def variance(self) -> Tensor:
        """Of the population: divided by the count."""
        return self.squares / self.count


class LatentStatistics:
    """Everything that `flexvae stats` says, gathered in float64; memory does not grow with the number of images.

    A unit is an element (c, y, x) of the latent; units are counted as long as all latents have one shape.
    """

    def __init__(self) -> None:
        self.images = 0
        self.channels: Moments | None = None
        self.units: Moments | None = None
        self.shape: tuple[int, ...] | None = None
        self.one_shape = True
        self.kl: Tensor | None = None  # (c,): nats per channel, summed over images and positions
        self.low = self.high = torch.empty(0, dtype=torch.float64)
        self.histograms: list[Histogram] = []

    def add(self, encoded: Encoded) -> None:
        """Take in a batch whose latents (b, c, *space) are finite and those that evaluation uses."""
        z = encoded.z.to("cpu", torch.float64)
        rows = z.transpose(0, 1).flatten(1)  # (c, b * positions)
        if self.channels is None:
            self.channels, self.shape = Moments(len(rows)), tuple(z.shape[1:])
            self.units = Moments(math.prod(self.shape))
            self.low, self.high = rows[:, 0].clone(), rows[:, 0].clone()
            self.histograms = [Histogram() for _ in rows]
        self.images += len(z)
        self.channels.add(rows.T)
        self.low, self.high = self.low.minimum(rows.amin(1)), self.high.maximum(rows.amax(1))
        for histogram, row in zip(self.histograms, rows.numpy(), strict=True):
            histogram.add(row)
        self._add_units(z)
        if encoded.posterior is not None:
            kl = gaussian_kl(encoded.posterior).cpu().transpose(0, 1).flatten(1).sum(1)  # (c,)
            self.kl = kl if self.kl is None else self.kl + kl

    def _add_units(self, z: Tensor) -> None:
        self.one_shape = self.one_shape and tuple(z.shape[1:]) == self.shape
        if self.units is not None and self.one_shape:
            self.units.add(z.flatten(1))

    def values(self) -> dict[str, Any]:
        """The statistics as JSON values; at least one batch must have been added."""
        assert self.channels is not None
        variance = self.channels.variance()
        mean, std = self.channels.mean.tolist(), variance.sqrt().tolist()
        nats = None if self.kl is None else (self.kl / self.channels.count).tolist()  # per position
        active = (variance > ACTIVE).tolist()
        channels = [
            {
                "channel": index,
                "mean": mean[index],
                "std": std[index],
                "shift": mean[index],
                "scaling": _inverse(std[index]),
                "min": self.low[index].item(),
                "max": self.high[index].item(),
                "kl": None if nats is None else nats[index],
                "active": active[index],
            }
            for index in range(len(mean))
        ]
        return {
            "images": self.images,
            "positions": self.channels.count,
            "channels": channels,
            "all": self._together(),
            "kl_per_image": None if self.kl is None else self.kl.sum().item() / self.images,
            "active": {"above": ACTIVE, "channels": sum(active), **self._active_units()},
            "histograms": [{"low": -h.reach, "high": h.reach, "counts": h.counts.tolist()} for h in self.histograms],
        }

    def _together(self) -> dict[str, float | None]:
        """Mean, deviation and scaling over all channels at once, as models with one scaling factor have them."""
        assert self.channels is not None
        mean = self.channels.mean.mean()
        std = (self.channels.variance() + (self.channels.mean - mean).square()).mean().sqrt().item()
        return {"mean": mean.item(), "std": std, "shift": mean.item(), "scaling": _inverse(std)}

    def _active_units(self) -> dict[str, int | None]:
        if self.units is None or not self.one_shape or self.images < 2:
            return {"units": None, "of_units": None}
        return {"units": int((self.units.variance() > ACTIVE).sum()), "of_units": len(self.units.mean)}


def gather(
    model: Model, samples: Iterable[Sample], statistics: LatentStatistics, batch_size: int = BATCH_SIZE
) -> Iterator[int]:
    """Take in whole images; yields how many have been.

    Raises:
        ModelError: the model gives latents that are not finite.
    """
    for run in runs(samples, lambda sample: model.net.fitting(sample.size), batch_size):
        encoded = encoded_batch(model, [sample.x for sample in run])
        require_finite(model, run, encoded.z, "latents")
        statistics.add(encoded)
        yield statistics.images


def _inverse(std: float) -> float | None:
    return 1 / std if std > 0 and np.isfinite(1 / std) else None
