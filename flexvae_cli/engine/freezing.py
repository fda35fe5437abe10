"""Parameters that are not trained for a while, or at all."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from flexvae_cli.engine.optimizer import matching
from flexvae_cli.errors import UsageError


def freeze(module: nn.Module, patterns: Sequence[str], trained: frozenset[str], where: str) -> list[nn.Module]:
    """Freeze the parameters that a pattern matches, and let the others of `trained` learn.

    Args:
        patterns: as in `encoder.*`.
        trained: the parameters that learn when nothing is frozen.
        where: the setting, for messages.

    Returns:
        The modules all of whose parameters are frozen: in training they are to stay in evaluation mode, so that
        neither dropout nor running statistics go on in a part that is meant to stay as it is.

    Raises:
        UsageError: a pattern matches nothing, or nothing is left to train.
    """
    frozen = matching(dict(module.named_parameters()), patterns, where)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name in trained and name not in frozen)
        if name in frozen:
            parameter.grad = None
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise UsageError("freezes every parameter; there is nothing left to train", where=where)
    return [m for m in module.modules() if _still(m)]


def _still(module: nn.Module) -> bool:
    parameters = list(module.parameters())
    return bool(parameters) and not any(p.requires_grad for p in parameters)
