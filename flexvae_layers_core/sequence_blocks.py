"""Data of one axis, in plain torch. Shapes: b samples, c channels, n positions."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class WeightNormed(nn.Module):
    """A convolution whose filters, along the first axis, are a length `weight_g` times a direction `weight_v`."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(weight.detach().norm(dim=(1, 2), keepdim=True))  # (channels, 1, 1)
        self.weight_v = nn.Parameter(weight.detach().clone())
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())

    def weight(self) -> torch.Tensor:
        return self.weight_v * (self.weight_g / self.weight_v.norm(dim=(1, 2), keepdim=True))


class NormedConv1d(WeightNormed):
    """nn.Conv1d with normalised weights."""

    def __init__(self, plain: nn.Conv1d) -> None:
        super().__init__(plain.weight, plain.bias)
        self.stride, self.padding, self.dilation, self.groups = (
            plain.stride,
            plain.padding,
            plain.dilation,
            plain.groups,
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv1d(x, self.weight(), self.bias, self.stride, self.padding, self.dilation, self.groups)


class NormedTranspose1d(WeightNormed):
    """nn.ConvTranspose1d with normalised weights."""

    def __init__(self, plain: nn.ConvTranspose1d) -> None:
        super().__init__(plain.weight, plain.bias)
        self.stride, self.padding, self.output_padding, self.groups = (
            plain.stride,
            plain.padding,
            plain.output_padding,
            plain.groups,
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        amounts = (self.stride, self.padding, self.output_padding, self.groups)
        return F.conv_transpose1d(x, self.weight(), self.bias, *amounts)  # type: ignore[arg-type]  # padding is no word


def normalised(plain: nn.Conv1d | nn.ConvTranspose1d) -> nn.Module:
    """The same convolution with its weights as length and direction."""
    return NormedConv1d(plain) if isinstance(plain, nn.Conv1d) else NormedTranspose1d(plain)


class CausalConv1d(nn.Module):
    """A convolution behind `lead` zeros."""

    def __init__(self, lead: int, conv: nn.Module) -> None:
        super().__init__()
        self.lead = lead
        self.conv = conv

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.conv(F.pad(x, (self.lead, 0)))  # (b, out_channels, n / stride)
        return out


class CausalTranspose1d(nn.Module):
    """A transposed convolution without its last `tail` outputs."""

    def __init__(self, tail: int, conv: nn.Module) -> None:
        super().__init__()
        self.tail = tail
        self.conv = conv

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.conv(x)
        return out[..., : out.shape[-1] - self.tail]  # (b, out_channels, n * stride)
