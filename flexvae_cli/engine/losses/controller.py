"""Holds a rate by moving the weight of the KL divergence: integral control of the weight's logarithm."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flexvae_cli.kl_options import LEAST_WEIGHT, MOST_WEIGHT

GAIN = 0.01
"""Change of the log-weight per step and per e-fold between rate and target: slower than a net answers to a weight."""
LARGEST_ERROR = 1.0  # e-folds; a rate far off moves the weight by a factor of e in 100 steps, and no faster


class RateController:
    """The weight of the KL divergence where `kld_target` is set; the device is never waited for.

    The state is the logarithm of the weight, there from its first use on. The losses of several phases share one.
    """

    def __init__(self) -> None:
        self.log_weight: Tensor | None = None

    def weight(self, start: float, like: Tensor) -> Tensor:
        """The weight, a scalar on the device of `like`.

        Args:
            start: the weight with which control begins.
            like: any tensor on the device of training.
        """
        with torch.inference_mode(False):  # validation may come first
            if self.log_weight is None:
                self.log_weight = torch.full((), math.log(start), dtype=torch.float32, device=like.device)
            elif self.log_weight.device != like.device:
                self.log_weight = self.log_weight.to(like.device)
        return self.log_weight.exp()

    def update(self, rate: Tensor, target: float) -> None:
        """Raise the weight where the rate is above its target, lower it where it is below.

        Args:
            rate: measured in the last step, nats per latent element; one that is not finite changes nothing.
            target: the rate to hold.
        """
        if self.log_weight is None:
            return
        error = (rate.detach().float().clamp(min=1e-12) / target).log().clamp(-LARGEST_ERROR, LARGEST_ERROR)
        moved = (self.log_weight + GAIN * error).clamp(math.log(LEAST_WEIGHT), math.log(MOST_WEIGHT))
        self.log_weight = torch.where(torch.isfinite(rate), moved, self.log_weight)

    def tensors(self) -> dict[str, Tensor]:
        return {} if self.log_weight is None else {"log_weight": self.log_weight}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take back what `tensors` gave.

        Raises:
            ValueError: it is something else.
        """
        if tensors.keys() - {"log_weight"}:
            raise ValueError("it is not that of kld_target")
        found = tensors.get("log_weight")
        if found is not None and (found.dim() or not bool(torch.isfinite(found))):
            raise ValueError("the KL weight is no finite number")
        self.log_weight = None if found is None else found.float().clone()
