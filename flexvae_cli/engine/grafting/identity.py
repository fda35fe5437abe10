"""A new layer that starts as the identity, where it can: found by trying it, not by knowing the layer.

A convolution passes its channels on; a block with a path around it starts with that path alone, because what ends the
other one is zero. What was tried and did not help is put back.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flexvae_cli.api import Shape
from flexvae_cli.engine.grafting.tensors import DIRECTIONS, delta_

MOST_SIDE = 16  # positions along an axis of the sample that a layer is tried on, where it takes so few
CLOSE = 1e-5


def make_identity(module: nn.Module, takes: Shape, channels: int) -> bool:
    """Change a fresh module's weights so that the first `channels` channels that come in go out; False where none do.

    Args:
        module: is left as it was where nothing helps.
        takes: what comes in, (c, *space).
        channels: how many of them are to pass.
    """
    x = _sample(module, takes)
    if x is None:
        return False
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    if _passes(module, x, channels):
        return True
    deltas = [delta_(each) for each in module.modules()]
    if any(deltas) and _passes(module, x, channels):
        return True
    module.load_state_dict(before)
    if channels == takes[0] and _zeroed(module, x, channels):
        return True
    module.load_state_dict(before)
    return False


def _zeroed(module: nn.Module, x: Tensor, channels: int) -> bool:
    """Zero submodules with weights, the last first, until the input passes; then put back what was not needed."""
    kept: list[tuple[nn.Module, dict[str, Tensor]]] = []
    for each in reversed(list(module.modules())):
        # of normalised weights, the length: a direction of 0 has none
        own = {name: p for name, p in each.named_parameters(recurse=False) if name not in DIRECTIONS}
        if not own:
            continue
        kept.append((each, {name: tensor.detach().clone() for name, tensor in own.items()}))
        _fill(each, dict.fromkeys(own))
        if _passes(module, x, channels):
            break
    else:
        return False
    for each, weights in kept:
        zeros = dict.fromkeys(weights)
        _fill(each, weights)
        if not _passes(module, x, channels):
            _fill(each, zeros)
    return True


def _fill(module: nn.Module, values: dict[str, Tensor] | dict[str, None]) -> None:
    with torch.no_grad():
        for name, value in values.items():
            parameter = module.get_parameter(name)
            parameter.zero_() if value is None else parameter.copy_(value)


def _passes(module: nn.Module, x: Tensor, channels: int) -> bool:
    with torch.no_grad():
        y = module.eval()(x)
    same_space = isinstance(y, Tensor) and y.dim() == x.dim() and y.shape[2:] == x.shape[2:]
    if not same_space or y.shape[1] < channels:
        return False
    return bool(torch.allclose(y[:, :channels], x[:, :channels], rtol=0, atol=CLOSE))


def _sample(module: nn.Module, takes: Shape) -> Tensor | None:
    """A small sample that the module takes, else one of the size in the net; None where it takes neither."""
    for space in ([min(n, MOST_SIDE) for n in takes[1:]], takes[1:]):
        x = torch.linspace(-2, 2, 2 * takes[0] * int(torch.tensor(space).prod())).reshape(2, takes[0], *space)
        x = x.flip(1).sin() + x / 2
        if _runs(module, x):
            return x
    return None


def _runs(module: nn.Module, x: Tensor) -> bool:
    try:
        with torch.no_grad():
            module.eval()(x)
    except Exception:  # a stranger's forward, at a size that it may refuse
        return False
    return True
