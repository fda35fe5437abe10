"""The layers that torch has not, in plain torch. Shapes: b samples, c channels, space = any axes, such as h w."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from flexvae_layers_extra.precision import exact

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}  # axes -> torch's own
AVERAGES = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
ADAPTIVE = {
    "mean": {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d},
    "max": {1: F.adaptive_max_pool1d, 2: F.adaptive_max_pool2d, 3: F.adaptive_max_pool3d},
}
LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}
Sizes = int | tuple[int, ...]


class BatchNorm(nn.Module):
    """nn.BatchNorm2d for data of any number of axes: statistics do not mind how the positions are laid out."""

    def __init__(self, num_features: int, eps: float, momentum: float, affine: bool) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(num_features, eps, momentum, affine)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        planes = x[..., None] if x.dim() == 3 else x.flatten(3)  # (b, c, h, w); two axes pass as they are
        normalised: torch.Tensor = self.norm(planes)
        return normalised.reshape(x.shape)


class ChannelNorm(nn.Module):
    """Layer normalisation over the channels of each position."""

    def __init__(self, num_channels: int, eps: float, affine: bool = True) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(num_channels, eps, affine)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normalised: torch.Tensor = self.norm(x.movedim(1, -1))  # (b, *space, c)
        return normalised.movedim(-1, 1)


class Shuffle(nn.Module):
    """nn.PixelShuffle for data of any number of axes: (b, c * r^axes, *space) -> (b, c, *(n * r))."""

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        r, axes, (b, c, *space) = self.factor, x.dim() - 2, x.shape
        c = c // r**axes
        parts = x.reshape(b, c, *[r] * axes, *space)  # (b, c, r, r, h, w)
        pairs = [axis for i in range(axes) for axis in (2 + axes + i, 2 + i)]
        return parts.permute(0, 1, *pairs).reshape(b, c, *(n * r for n in space))  # (b, c, h r, w r)


class Unshuffle(nn.Module):
    """nn.PixelUnshuffle for data of any number of axes: (b, c, *(n * r)) -> (b, c * r^axes, *space)."""

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        r, axes, (b, c, *space) = self.factor, x.dim() - 2, x.shape
        parts = x.reshape(b, c, *(n for size in space for n in (size // r, r)))  # (b, c, h, r, w, r)
        phases, positions = range(3, 3 + 2 * axes, 2), range(2, 2 + 2 * axes, 2)
        return parts.permute(0, 1, *phases, *positions).reshape(b, c * r**axes, *(n // r for n in space))


class RootMeanSquareNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) over the channels of each position, in float32, then a scale and maybe a shift."""

    def __init__(self, num_channels: int, eps: float, bias: bool) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(num_channels))
        self.bias = nn.Parameter(torch.zeros(num_channels)) if bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        per_channel = (-1, *[1] * (x.dim() - 2))
        mean_square = x.float().square().mean(1, keepdim=True)  # (b, 1, *space)
        normalised = x * (mean_square + self.eps).rsqrt() * self.weight.view(per_channel)
        if self.bias is not None:
            normalised = normalised + self.bias.view(per_channel)
        return normalised.to(x.dtype)


class SoftClamp(nn.Module):
    """limit * tanh(x / limit)."""

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.limit = limit

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.limit * torch.tanh(x / self.limit)


class Rescale(nn.Module):
    """x * multiply + add."""

    def __init__(self, multiply: float, add: float) -> None:
        super().__init__()
        self.multiply, self.add = multiply, add

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.multiply + self.add


class ChannelMean(nn.Module):
    """The mean of each group of neighbouring channels: (b, c * g, *space) -> (b, c, *space)."""

    def __init__(self, group_size: int) -> None:
        super().__init__()
        self.group_size = group_size

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(1, (-1, self.group_size)).mean(2)


class ChannelRepeat(nn.Module):
    """Every channel several times in a row: (b, c, *space) -> (b, c * n, *space)."""

    def __init__(self, copies: int) -> None:
        super().__init__()
        self.copies = copies

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.repeat_interleave(self.copies, dim=1, output_size=x.shape[1] * self.copies)


class DivisiveNorm(nn.Module):
    """x / sqrt(beta + gamma x^2) over the channels of each position, in float32; the inverse multiplies."""

    def __init__(self, num_channels: int, inverse: bool) -> None:
        super().__init__()
        self.inverse = inverse
        self.beta = nn.Parameter(torch.ones(num_channels))
        # Squares of the weights: gamma starts at 0.1 on the diagonal, and almost at 0 beside it, where at 0 the
        # derivative of the square would be 0 for good.
        self.gamma = nn.Parameter(torch.full((num_channels, num_channels), 1e-3).fill_diagonal_(0.1**0.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        squares = x.float().square().flatten(2)  # (b, c, positions)
        weight = self.gamma.float().square()[:, :, None]
        with exact(x.device):
            power = F.conv1d(squares, weight, self.beta.float().square() + 1e-6).reshape(x.shape)
        return (x * power.sqrt() if self.inverse else x * power.rsqrt()).to(x.dtype)


class DropPath(nn.Module):
    """In training whole samples are zeroed with probability p, the others scaled by 1 / (1 - p)."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return x
        return x * F.dropout(x.new_ones(x.shape[0], *[1] * (x.dim() - 1)), self.p)


class ConvNeXtBlock(nn.Module):
    """x + scale * project(gelu(expand(norm(depthwise(x)))))."""

    def __init__(self, channels: int, kernel_size: int, expansion: int, axes: int = 2) -> None:
        super().__init__()
        self.depthwise = CONVOLUTIONS[axes](channels, channels, kernel_size, padding=kernel_size // 2, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.expand = nn.Linear(channels, expansion * channels)
        self.project = nn.Linear(expansion * channels, channels)
        self.scale = nn.Parameter(torch.full((channels,), 1e-6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h: torch.Tensor = self.norm(self.depthwise(x).movedim(1, -1))  # (b, *space, c)
        h = self.scale * self.project(F.gelu(self.expand(h)))
        return x + h.movedim(-1, 1)


class AveragePool(nn.Module):
    """torch's average pooling for as many axes as the data has."""

    def __init__(self, kernel_size: Sizes, stride: Sizes | None, padding: Sizes, count_include_pad: bool) -> None:
        super().__init__()
        self.kernel_size, self.stride, self.padding = kernel_size, stride or kernel_size, padding
        self.count_include_pad = count_include_pad

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pool = AVERAGES[x.dim() - 2]
        # torch lacks this in bfloat16 on the CPU for three axes
        wide = x.to(torch.promote_types(x.dtype, torch.float32)) if x.dim() == 5 else x
        y = pool(wide, self.kernel_size, self.stride, self.padding, count_include_pad=self.count_include_pad)
        return y.to(x.dtype)


class AdaptivePool(nn.Module):
    """torch's adaptive pooling, the mean or the maximum, for as many axes as the data has."""

    def __init__(self, kind: str, output_size: Sizes) -> None:
        super().__init__()
        self.kind, self.output_size = kind, output_size

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return ADAPTIVE[self.kind][x.dim() - 2](x, self.output_size)


class LinearUpsample(nn.Module):
    """Linear interpolation along every axis; positions are areas, their corners are not aligned."""

    def __init__(self, scale_factor: Sizes) -> None:
        super().__init__()
        self.scale_factor = scale_factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        axes = x.dim() - 2
        factors = (self.scale_factor,) * axes if isinstance(self.scale_factor, int) else self.scale_factor
        return F.interpolate(x, scale_factor=[float(n) for n in factors], mode=LINEAR[axes], align_corners=False)
