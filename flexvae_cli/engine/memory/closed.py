"""What a training step holds whatever its batch: weights, gradients, the state of optimizers and of the EMA."""

from __future__ import annotations

from dataclasses import dataclass

FLOAT32 = 4  # bytes


@dataclass(frozen=True, slots=True)
class States:
    """Bytes that do not depend on the batch.

    `optimizer` is everything that only training keeps, the EMA included; None where it is not known.
    """

    parameters: int
    gradients: int
    optimizer: int | None

    @property
    def total(self) -> int:
        return self.parameters + self.gradients + (self.optimizer or 0)


def states_of(parameters: int, tensors: int, training: int = 0, *, adam: bool = True) -> States:
    """The states of nets in float32.

    Args:
        parameters: trained numbers of the nets.
        tensors: tensors that they make up.
        training: bytes of what a trial found training to keep beside weights and gradients; 0 where it ended before it
            could tell.
        adam: whether that is the state of Adam or AdamW alone, which is known without a trial: two moments for each
            number, and a step count for each tensor.
    """
    weights = FLOAT32 * parameters
    known = training or (2 * weights + FLOAT32 * tensors if adam else None)
    return States(weights, gradients=weights, optimizer=known)
