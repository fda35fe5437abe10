"""What every fusion of neighbouring layers has in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
MARK = "flexvae_fuses"


class Fusion(nn.Module):
    """Two neighbouring layers that compute as one.

    It owns nothing: it stands beside the net, not in it, and reads the layers' parameters when it computes.

    Args:
        first, second: the layers, called one after the other where the fusion does not hold.
        inner: layers inside of them that are not called where it does.
        always: whether it holds whatever the rules say.
    """

    what: ClassVar[str]
    """In a few words, for `flexvae inspect`."""

    def __init__(
        self, first: nn.Module, second: nn.Module, *, inner: Sequence[nn.Module] = (), always: bool = False
    ) -> None:
        super().__init__()
        self.layers = (first, second)  # a tuple, so that neither becomes a child
        self.inner = tuple(inner)
        self.always = always

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.layers
        if any(map(looked_at, (*self.layers, *self.inner))) or not (self.always or self.pays(x)):
            out: Tensor = second(first(x))
            return out
        return self.together(x)

    @abstractmethod
    def pays(self, x: Tensor) -> bool:
        """Whether it is faster for an input (b, c, *space)."""

    @abstractmethod
    def together(self, x: Tensor) -> Tensor:
        """What both layers make of an input (b, c, *space)."""


def looked_at(module: nn.Module) -> bool:
    """Whether a hook wants what comes in, goes out or flows back here; torch has no public way to ask."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def offers(module: nn.Module, name: str) -> bool:
    """Whether a layer lets what it calls `name` be computed in another way: its class lists it in `flexvae_fuses`.

    A class says so itself; one that is derived from it may compute something else, and says it again.
    """
    listed = vars(type(module)).get(MARK, ())
    return isinstance(listed, tuple) and name in listed and name not in module._modules


def is_convolution(module: nn.Module) -> bool:
    """Whether a module computes as torch's convolutions do; weight normalization leaves that as it is."""
    return isinstance(module, CONVOLUTIONS) and any(type(module).forward is kind.forward for kind in CONVOLUTIONS)


def sizes(value: object, axes: int) -> tuple[int, ...] | None:
    """One whole number per axis; None where there are no whole numbers, as in a padding of `same`."""
    values: tuple[object, ...] = value if isinstance(value, tuple) else (value,) * axes
    whole = [int(n) for n in values if isinstance(n, int | float) and float(n).is_integer()]
    return tuple(whole) if len(whole) == len(values) == axes else None
