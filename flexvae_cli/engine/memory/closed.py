"""What a training step holds whatever its batch, in closed form: weights, gradients, the optimizer's state."""

from __future__ import annotations

from dataclasses import dataclass

FLOAT32 = 4  # bytes


@dataclass(frozen=True, slots=True)
class States:
    """Bytes that do not depend on the batch."""

    parameters: int
    gradients: int
    optimizer: int

    @property
    def total(self) -> int:
        return self.parameters + self.gradients + self.optimizer


def states_of(parameters: int, tensors: int) -> States:
    """The states of a net in float32 under AdamW: two moments for each number, and a step count for each tensor.

    Args:
        parameters: trained numbers of the net.
        tensors: tensors that they make up.
    """
    weights = FLOAT32 * parameters
    return States(weights, gradients=weights, optimizer=2 * weights + FLOAT32 * tensors)
