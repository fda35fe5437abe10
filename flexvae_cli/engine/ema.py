"""The running mean of the weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from flexvae_cli.config.settings import EmaTable


class Ema:
    """An exponential running mean of a module's parameters, in their own precision; buffers are taken as they are.

    With decay 0 there is no mean, and every method stands for the parameters themselves.

    Args:
        module: a net that is built and on its device; its parameters are the mean's first value.
        table: `[ema]`.
    """

    def __init__(self, module: nn.Module, table: EmaTable) -> None:
        self.table = table
        self.live: dict[str, nn.Parameter] = dict(module.named_parameters()) if table.decay else {}
        self.mean: dict[str, Tensor] = {name: p.detach().clone() for name, p in self.live.items()}

    def decay(self, step: int) -> float:
        """The decay of the update behind step `step`, counted from 0."""
        rising = (1 + step) / (10 + step) if self.table.warmup else 1.0
        return min(self.table.decay, rising)

    @torch.no_grad()
    def update(self, step: int, bad: Tensor) -> None:
        """Move the mean towards the parameters, once per optimizer step.

        Args:
            step: counted from 0.
            bad: a scalar on the device, not 0 where the step was skipped: then the mean stays as it is.
        """
        if self.mean:
            means = list(self.mean.values())
            moves = torch._foreach_sub(list(self.live.values()), means)
            torch._foreach_mul_(moves, (1 - self.decay(step)) * (bad == 0))
            torch._foreach_add_(means, moves)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """While held, the module has the mean for its parameters: for validation, previews and statistics."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _exchange(self) -> None:
        for name, parameter in self.live.items():
            parameter.data, self.mean[name] = self.mean[name], parameter.data

    def weights(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """A module's `state_dict` with the mean in the place of the parameters."""
        return {**state, **self.mean}

    def tensors(self) -> dict[str, Tensor]:
        """The parameters themselves: the mean is what a checkpoint has for its model."""
        return {name: parameter.detach() for name, parameter in self.live.items()}

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take the module's present parameters for the mean, and `tensors` for its parameters."""
        if tensors.keys() != self.live.keys():
            raise ValueError("it has other parameters")
        for name, parameter in self.live.items():
            if tensors[name].shape != parameter.shape:
                raise ValueError(f"{name} has another shape")
            self.mean[name].copy_(parameter)
            parameter.copy_(tensors[name])
