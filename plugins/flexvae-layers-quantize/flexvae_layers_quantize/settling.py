"""What quantizers learn from their inputs beside gradients: collected in a step, acted on when it is over."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import nn


class Settling(nn.Module, ABC):
    """A module that remembers something of its inputs, which takes effect between two steps.

    In training a forward pass only adds to buffers that are not saved; `settle` acts on them and empties them. It is
    called before the next step (a trainer calls `train()` then), before evaluation, and before the state is saved.
    So all micro-batches of a step meet the same codes, and so does a pass that is run again in the backward pass.

    Several processes: a trainer takes the mean of all buffers over the processes after every step. What is added is
    therefore multiplied by their number, the mean is then the sum, and `settle` does the same everywhere. It draws no
    random numbers and never waits for the device.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_state_dict_pre_hook(_settle_before_saving)

    def train(self, mode: bool = True) -> Settling:
        self.settle()
        super().train(mode)
        return self

    @abstractmethod
    def settle(self) -> None:
        """Act on what was collected, if there is anything."""


def _settle_before_saving(module: nn.Module, prefix: str, keep_vars: bool) -> None:  # noqa: ARG001
    if isinstance(module, Settling):
        module.settle()


def processes() -> tuple[int, int]:
    """Which of the processes that train together this is, and their number."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1
