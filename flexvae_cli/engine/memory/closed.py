"""What a training step holds whatever its batch: weights, gradients, the state of optimizers and of the EMA."""

from __future__ import annotations

from dataclasses import dataclass

FLOAT32 = 4  # bytes


@dataclass(frozen=True, slots=True)
class States:
    """Bytes that do not depend on the batch; `optimizer` is everything that only training keeps, EMA included."""

    parameters: int
    gradients: int
    optimizer: int

    @property
    def total(self) -> int:
        return self.parameters + self.gradients + self.optimizer


def states_of(parameters: int, tensors: int, training: int = 0) -> States:
    """The states of nets in float32.

    Args:
        parameters: trained numbers of the nets.
        tensors: tensors that they make up.
        training: bytes of what a trial found training to keep beside weights and gradients; where it ended before it
            could tell, AdamW's share stands in: two moments for each number, and a step count for each tensor.
    """
    weights = FLOAT32 * parameters
    return States(weights, gradients=weights, optimizer=training or 2 * weights + FLOAT32 * tensors)
