"""Parameters that are not trained for a while, or at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from flexvae_cli.engine.optimizer import matching
from flexvae_cli.errors import UsageError


def freeze(module: nn.Module, patterns: Sequence[str], trained: frozenset[str], where: str) -> list[nn.Module]:
    """Freeze the parameters that a pattern matches, and let the others of `trained` learn.

    What follows its inputs without any parameter, such as the codebook of a quantizer, is frozen by its buffers' names.

    Args:
        patterns: as in `encoder.*`.
        trained: the parameters that learn when nothing is frozen.
        where: the setting, for messages.

    Returns:
        The modules that are frozen as a whole: in training they are to stay in evaluation mode, so that neither dropout
        nor running statistics go on in a part that is meant to stay as it is.

    Raises:
        UsageError: a pattern matches nothing, or nothing is left to train.
    """
    followers = _followers(module)
    names = [*dict(module.named_parameters()), *(name for names in followers.values() for name in names)]
    frozen = matching(names, patterns, where)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name in trained and name not in frozen)
        if name in frozen:
            parameter.grad = None
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise UsageError("freezes every parameter; there is nothing left to train", where=where)
    stopped = {follower: not frozen.isdisjoint(names) for follower, names in followers.items()}
    return [part for part in module.modules() if _still(part, stopped)]


def _followers(module: nn.Module) -> dict[nn.Module, list[str]]:
    """The modules that have buffers and not one parameter, and the names of these buffers."""
    return {
        part: [f"{name}.{buffer}" for buffer, _ in part.named_buffers(recurse=False)]
        for name, part in module.named_modules()
        if any(True for _ in part.buffers(recurse=False)) and not any(True for _ in part.parameters())
    }


def _still(module: nn.Module, stopped: Mapping[nn.Module, bool]) -> bool:
    """Whether nothing learns in a module and, where it has no parameters, nothing follows its inputs either."""
    parameters = list(module.parameters())
    if parameters:
        return not any(parameter.requires_grad for parameter in parameters)
    followers = [stopped[part] for part in module.modules() if part in stopped]
    return bool(followers) and all(followers)
