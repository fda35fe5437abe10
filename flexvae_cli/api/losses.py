"""A loss describes itself as a layer does, and states its reduction: what a weight on it means follows from that."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, get_args

from flexvae_cli.api.spec import Spec, described
from flexvae_cli.api.trace import Shape

Reduction = Literal["element", "element-sum", "latent", "latent-sum", "sample"]

REDUCTIONS: Mapping[str | None, str] = MappingProxyType(
    {
        "element": "mean over all elements of all samples",
        "element-sum": "sum over a sample's elements, mean over samples",
        "latent": "mean over all elements of all latents",
        "latent-sum": "sum over a sample's latent elements, mean over samples",
        "sample": "one number for a sample, mean over samples",
        None: "unstated",
    }
)
"""Every reduction in words. Elements are pixels in each channel, or as many frequencies."""


@dataclass(frozen=True)
class LossSpec(Spec):
    """A spec whose product maps a `Batch` to a scalar.

    Attributes:
        reduction: how the values of elements become one, None where the plugin does not say.
        dims: the number of spatial axes that the loss takes; None where it takes any.
        fits: refuses samples that the loss cannot take; see `loss`.
    """

    reduction: Reduction | None = None
    dims: int | None = None
    fits: Callable[..., None] | None = None
    _asked: tuple[str, ...] = field(default=(), init=False, repr=False)

    def __post_init__(self) -> None:
        if self.fits is not None:
            names = tuple(inspect.signature(self.fits).parameters)[1:]
            object.__setattr__(self, "_asked", names)

    def require(self, shape: Shape, values: Mapping[str, Any]) -> None:
        """Refuse samples that the loss cannot take.

        Args:
            shape: of a sample, (c, *space).
            values: the loss's parameters.

        Raises:
            ValueError: what it wants instead.
        """
        if self.dims not in (None, len(shape) - 1):
            raise ValueError(f"works on {self.dims}-D data")
        if self.fits is not None:
            self.fits(shape, **{name: values[name] for name in self._asked if name in values})


def loss(
    name: str,
    *,
    reduction: Reduction | None = None,
    dims: int | None = None,
    fits: Callable[..., None] | None = None,
) -> Callable[[Callable[..., Any]], LossSpec]:
    """Declare a loss: its factory returns a function from `Batch` to a scalar tensor, a mean over samples.

    Args:
        name: the name in codes: letters and digits, begins with a letter, at most 32.
        reduction: `element`, `element-sum`, `latent`, `latent-sum` or `sample`, see `REDUCTIONS`; `flexvae config
            explain-loss` converts weights by it.
        dims: the number of spatial axes that the loss takes; None where it takes any.
        fits: takes the shape of a sample, (c, *space), and then some of the factory's parameters, by name; it raises
            ValueError where the loss cannot take such samples, as in `wants sides of at least 11 pixels`.
    """
    if reduction not in (None, *get_args(Reduction)):
        raise ValueError(f"loss {name}: the reduction is {' or '.join(get_args(Reduction))}, not {reduction!r}")

    def declare(factory: Callable[..., Any]) -> LossSpec:
        return LossSpec(**described("loss", name, factory), reduction=reduction, dims=dims, fits=fits)

    return declare
