"""The checks that `check_loss` runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from flexvae_cli.api.losses import LossSpec
from flexvae_cli.api.results import Batch, Encoded, Gaussian
from flexvae_cli.api.spec import Spec
from flexvae_cli.api.trace import Shape

SIDES = (32, 192)
"""Sides of the samples that a loss is tried on; the first that it takes counts."""
LONG = 4096
"""Signals are tried at this length too: a window of a spectrogram has a thousand of their samples."""
FALL = 1e-2  # length of the step against the gradient, for leaves of a few thousand numbers around 1

Loss = Callable[[Batch], Any]


class Leaves(NamedTuple):
    """What a loss can have a gradient to: the decoder's output, and mean and log-variance of the posterior."""

    output: Any
    mean: Any
    log_variance: Any


def shape_for(spec: Spec, values: dict[str, Any]) -> Shape:
    """Samples that the loss takes: 3 channels, of few pixels.

    Raises:
        ValueError: it takes none of those that are tried.
    """
    dims = (isinstance(spec, LossSpec) and spec.dims) or 2
    defaults = {param.name: param.default for param in spec.params} | values
    refused, sides = None, (*SIDES, LONG) if dims == 1 else SIDES
    for side in sides:
        shape = (3, *(side,) * dims)
        try:
            if isinstance(spec, LossSpec):
                spec.require(shape, defaults)
        except ValueError as error:
            refused = error
        else:
            return shape
    raise ValueError(f"refuses samples with sides of {sides[-1]}: {refused}")


def loss_faults(function: Loss, shape: Shape = (3, 32, 32), *, stated: bool = False) -> Iterator[str]:
    """What is wrong with a loss, on two random samples.

    Args:
        shape: of a sample.
        stated: whether it says how it reduces; then it is a mean over samples.
    """
    import torch

    x, leaves, noise = _draw(shape)
    given = [each.detach().clone() for each in (x, *leaves)]
    value = _value(function, x, leaves, noise)
    if not isinstance(value, torch.Tensor) or value.dim():
        yield f"it returns {tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__}, no scalar"
        return
    if not value.isfinite():
        yield "its value is not finite"
    if not all(torch.equal(before, each) for before, each in zip(given, (x, *leaves), strict=True)):
        yield "it changes its batch in place"
    gradients = _gradients(value, leaves)
    if not any(gradient.any() for gradient in gradients):
        yield "it has no gradient to the output or the latent"
    elif not all(gradient.isfinite().all() for gradient in gradients):
        yield "its gradient is not finite"
    else:
        yield from _direction(function, x, leaves, noise, gradients)
        if stated and not _is_mean(function, x, leaves, noise):
            yield "its value for two samples is not the mean of its values for each, as its reduction says"


def _draw(shape: Shape) -> tuple[Any, Leaves, Any]:
    """Two samples, what a net made of them, and the noise of the latent."""
    import torch

    x, output = (torch.rand(2, *shape) * 2 - 1 for _ in range(2))
    latent = (2, 4, *(max(1, side // 4) for side in shape[1:]))
    mean, log_variance, noise = (torch.randn(latent) for _ in range(3))
    return x, Leaves(*(each.requires_grad_() for each in (output, mean, log_variance))), noise


def _value(function: Loss, x: Any, leaves: Leaves, noise: Any) -> Any:
    """The loss, with equal random numbers every time."""
    import torch

    torch.manual_seed(0)
    output, mean, log_variance = leaves
    z = mean + (0.5 * log_variance).exp() * noise
    return function(Batch(x, output, output, Encoded(z, Gaussian(mean, log_variance))))


def _gradients(value: Any, leaves: Leaves) -> list[Any]:
    import torch

    if not value.requires_grad:
        return [torch.zeros_like(leaf) for leaf in leaves]
    found = torch.autograd.grad(value, leaves, allow_unused=True)
    return [torch.zeros_like(leaf) if grad is None else grad for leaf, grad in zip(leaves, found, strict=True)]


def _direction(function: Loss, x: Any, leaves: Leaves, noise: Any, gradients: list[Any]) -> Iterator[str]:
    """Whether the gradient is the way down, and another one elsewhere."""
    import torch

    norm = torch.stack([gradient.square().sum() for gradient in gradients]).sum().sqrt()
    lower = Leaves(
        *(
            (leaf - FALL * gradient / norm).detach().requires_grad_()
            for leaf, gradient in zip(leaves, gradients, strict=True)
        )
    )
    if not _value(function, x, lower, noise) < _value(function, x, leaves, noise):
        yield "it does not fall along its gradient: a part of it that counts is detached, or a sign is wrong"
    # not the same distance on the other side: there the gradient of a cosine is what it is here
    elsewhere = Leaves(*((-0.5 * leaf).detach().requires_grad_() for leaf in leaves))
    moved = _gradients(_value(function, x, elsewhere, noise), elsewhere)
    if all(torch.equal(one, two) for one, two in zip(gradients, moved, strict=True)):
        yield "its gradient is the same whatever the net gives: are two arguments swapped?"


def _is_mean(function: Loss, x: Any, leaves: Leaves, noise: Any) -> bool:
    import torch

    with torch.no_grad():
        alone = [
            _value(function, x[i : i + 1], Leaves(*(leaf[i : i + 1] for leaf in leaves)), noise[i : i + 1])
            for i in range(len(x))
        ]
        together = _value(function, x, leaves, noise)
    return torch.allclose(torch.stack(alone).mean(), together, rtol=1e-3, atol=1e-6)
