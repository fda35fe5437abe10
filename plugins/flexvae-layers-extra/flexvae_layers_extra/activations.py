"""Activations: functions of each number by itself, for data of any number of axes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from flexvae_cli.api import Count, Range, Rule, layer, mirrors, pointwise, same

if TYPE_CHECKING:
    from torch import nn


@layer("ReLU", trace=same, mirror=mirrors.in_order)
def relu() -> nn.Module:
    """Rectified linear unit, max(x, 0).

    Examples:
        ReLU: 3x8x6 -> 3x8x6
        ReLU: 3x10 -> 3x10
    """
    from torch import nn

    return nn.ReLU()


@layer("ReLU6", trace=same, mirror=mirrors.in_order)
def relu6() -> nn.Module:
    """Rectified linear unit with a ceiling, min(max(x, 0), 6).

    Examples:
        ReLU6: 3x8x6 -> 3x8x6
    """
    from torch import nn

    return nn.ReLU6()


@layer("LeakyReLU", trace=same, mirror=mirrors.in_order)
def leaky_relu(negative_slope: float = 0.01) -> nn.Module:
    """x where it is positive, else a fraction of it.

    Args:
        negative_slope: the fraction.

    Examples:
        LeakyReLU: 3x8x6 -> 3x8x6
        LeakyReLU_0.2: 3x4x4x2 -> 3x4x4x2
    """
    from torch import nn

    return nn.LeakyReLU(negative_slope)


def prelu_rule(num_parameters: int) -> Rule:
    """One slope for all channels takes any number of them, otherwise there is a slope for each."""
    return pointwise(None if num_parameters == 1 else num_parameters, num_parameters)


@layer("PReLU", trace=prelu_rule, mirror=mirrors.in_order)
def prelu(num_parameters: Count = 1, init: float = 0.25) -> nn.Module:
    """x where it is positive, else a learned fraction of it (He et al., 2015, arXiv:1502.01852).

    Args:
        num_parameters: learned fractions: 1 for all channels, or the number of channels.
        init: the fraction at the start.

    Examples:
        PReLU: 3x8x6 -> 3x8x6
        PReLU_4_0.1: 4x10 -> 4x10
    """
    from torch import nn

    return nn.PReLU(num_parameters, init)


@layer("ELU", trace=same, mirror=mirrors.in_order)
def elu(alpha: float = 1.0) -> nn.Module:
    """Exponential linear unit, x or alpha * (exp(x) - 1) below zero (Clevert et al., 2015, arXiv:1511.07289).

    Args:
        alpha: minus the limit towards minus infinity.

    Examples:
        ELU: 3x8x6 -> 3x8x6
        ELU_0.5: 3x10 -> 3x10
    """
    from torch import nn

    return nn.ELU(alpha)


@layer("SELU", trace=same, mirror=mirrors.in_order)
def selu() -> nn.Module:
    """Scaled exponential linear unit (Klambauer et al., 2017, arXiv:1706.02515).

    Examples:
        SELU: 3x8x6 -> 3x8x6
    """
    from torch import nn

    return nn.SELU()


@layer("GELU", trace=same, mirror=mirrors.in_order)
def gelu(*, approximate: Literal["none", "tanh"] = "none") -> nn.Module:
    """Gaussian error linear unit, x * Phi(x) (Hendrycks and Gimpel, 2016, arXiv:1606.08415).

    Args:
        approximate: how the normal distribution function Phi is computed: exactly, or by a tanh.

    Examples:
        GELU: 3x8x6 -> 3x8x6
        GELU_approximate=tanh: 3x10 -> 3x10
    """
    from torch import nn

    return nn.GELU(approximate)


@layer("Mish", trace=same, mirror=mirrors.in_order)
def mish() -> nn.Module:
    """x * tanh(softplus(x)) (Misra, 2019, arXiv:1908.08681).

    Examples:
        Mish: 3x8x6 -> 3x8x6
    """
    from torch import nn

    return nn.Mish()


@layer("Softplus", trace=same, mirror=mirrors.in_order)
def softplus(beta: Annotated[float, Range(1e-3)] = 1.0) -> nn.Module:
    """A smooth ReLU, log(1 + exp(beta * x)) / beta.

    Args:
        beta: how sharp the bend is.

    Examples:
        Softplus: 3x8x6 -> 3x8x6
        Softplus_2.5: 3x10 -> 3x10
    """
    from torch import nn

    return nn.Softplus(beta)


@layer("Softsign", trace=same, mirror=mirrors.in_order)
def softsign() -> nn.Module:
    """x / (1 + abs(x)), from -1 to 1.

    Examples:
        Softsign: 3x8x6 -> 3x8x6
    """
    from torch import nn

    return nn.Softsign()


@layer("Tanh", trace=same, mirror=mirrors.in_order)
def tanh() -> nn.Module:
    """Hyperbolic tangent, from -1 to 1.

    Examples:
        Tanh: 3x8x6 -> 3x8x6
        Tanh: 3x10 -> 3x10
    """
    from torch import nn

    return nn.Tanh()


@layer("Sigmoid", trace=same, mirror=mirrors.in_order)
def sigmoid() -> nn.Module:
    """Logistic function, 1 / (1 + exp(-x)), from 0 to 1.

    Examples:
        Sigmoid: 3x8x6 -> 3x8x6
    """
    from torch import nn

    return nn.Sigmoid()


@layer("Hardsigmoid", trace=same, mirror=mirrors.in_order)
def hardsigmoid() -> nn.Module:
    """The sigmoid in three straight pieces, min(max(x / 6 + 1/2, 0), 1).

    Examples:
        Hardsigmoid: 3x8x6 -> 3x8x6
    """
    from torch import nn

    return nn.Hardsigmoid()


@layer("Hardswish", trace=same, mirror=mirrors.in_order)
def hardswish() -> nn.Module:
    """x times the sigmoid in three straight pieces (Howard et al., 2019, arXiv:1905.02244).

    Examples:
        Hardswish: 3x8x6 -> 3x8x6
        Hardswish: 3x10 -> 3x10
    """
    from torch import nn

    return nn.Hardswish()


LAYERS = [
    relu,
    relu6,
    leaky_relu,
    prelu,
    elu,
    selu,
    gelu,
    mish,
    softplus,
    softsign,
    tanh,
    sigmoid,
    hardsigmoid,
    hardswish,
]
