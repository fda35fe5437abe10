"""Steps whose numbers are not finite: skipped and counted on the device, looked at when the host looks anyway."""

from __future__ import annotations

import torch
from torch import Tensor

from flexvae_cli.errors import DivergedError

WINDOW = 1000  # steps that are remembered
MOST_IN_WINDOW = 10
MOST_IN_A_ROW = 10


class Health:
    """Counts skipped updates without ever waiting for the device.

    Args:
        device: where the steps are computed.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.window = torch.zeros(WINDOW, dtype=torch.int64, device=device)  # step + 1 where skipped, else 0
        self.row = torch.zeros((), dtype=torch.int64, device=device)
        self.longest_row = torch.zeros_like(self.row)  # since the run began
        self.total = torch.zeros_like(self.row)
        self._told = 0  # the steps up to here were told of

    def add(self, step: int, bad: Tensor) -> None:
        """Take in whether the update of `step` was skipped: a scalar on the device, not 0 for yes."""
        bad = (bad != 0).to(torch.int64)
        self.window[step % WINDOW] = bad * (step + 1)
        self.row = (self.row + 1) * bad
        self.longest_row = torch.maximum(self.longest_row, self.row)
        self.total = self.total + bad

    def skipped_since(self) -> list[int]:
        """The steps skipped since the last call; the device is waited for."""
        steps = sorted(number - 1 for number in self.window.tolist() if number > self._told)
        self._told = max([self._told, *(step + 1 for step in steps)])
        return steps

    def check(self, step: int) -> None:
        """Refuse to go on where too many updates were skipped; the device is waited for.

        Raises:
            DivergedError: more than 10 in a row, or more than 1 % of the last 1,000.
        """
        recent = int((self.window > max(0, step - WINDOW)).sum())
        row = int(self.longest_row)
        if row < MOST_IN_A_ROW and recent <= MOST_IN_WINDOW:
            return
        often = f"{row} times in a row" if row >= MOST_IN_A_ROW else f"{recent} times in the last {WINDOW:,} steps"
        raise DivergedError(
            f"training diverged: at step {step} the loss or its gradient was not finite, {often}",
            hint="the last checkpoint is sound; try a smaller optimizer.lr or optimizer.clip_norm",
        )

    def tensors(self) -> dict[str, Tensor]:
        return {"window": self.window, "counts": torch.stack([self.row, self.longest_row, self.total])}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        if tensors.keys() != {"window", "counts"} or len(tensors["window"]) != WINDOW:
            raise ValueError("it is of another kind")
        device = self.window.device
        self.window = tensors["window"].to(device)
        self.row, self.longest_row, self.total = tensors["counts"].to(device).unbind()
        self._told = int(self.window.max())
