"""Whether the disk has room for a run, asked before it begins."""

from __future__ import annotations

from pathlib import Path

from flexvae_cli.engine.files import require_space


def moments(name: str, momentum: float) -> int:
    """The numbers that an optimizer keeps for each parameter."""
    return {"sgd": int(momentum > 0), "rmsprop": 1 + (momentum > 0), "adafactor": 0}.get(name, 2)


def checkpoint_bytes(weights: int, trained: int, *, kept: int = 2, mean: bool = False) -> int:
    """What a checkpoint will take, in bytes.

    Args:
        weights: bytes of the weights and buffers.
        trained: bytes of the parameters that are trained.
        kept: numbers that the optimizer keeps for each of them, see `moments`.
        mean: whether a running mean of the weights is kept beside them.
    """
    return weights * (2 if mean else 1) + kept * trained


def require_room(run: Path, size: int, *, keep: int, there: int = 0) -> None:
    """Refuse a run whose checkpoints cannot fit.

    Args:
        run: the run directory.
        size: bytes of a checkpoint.
        keep: checkpoints that are kept; one more is there while it takes the place of an older one.
        there: checkpoints of the run that are on the disk already.

    Raises:
        DiskFullError: there is less room than they need.
    """
    missing = max(1, keep + 1 - there)
    many = f"{missing} checkpoint{'s' * (missing > 1)}"
    hint = f"that is {many}; make room, lower train.keep_last, choose another train.run_dir, or add --force"
    require_space(run, size * missing, hint)
