"""What computes fastest where: the measured rules behind every `auto`, with their numbers.

Ratios are times, plain over the other, on a server CPU with bf16 arithmetic (AVX-512), torch 2.14; those of single
operations were taken in turns on one thread while the machine had other work, and are good for a choice, no more. What
they come to is for `benchmarks/speed.py` to say. On a GPU none has been measured, so there everything is done in
torch's own way, apart from the layout.
"""

from __future__ import annotations

from math import ceil, prod

import torch
from torch import Tensor, nn

COMPOSING = 120
"""Multiply-adds that take as long as making one element of a composed kernel, which is a matter of memory."""

GAIN = 0.8
"""A composed kernel is used if it takes this part of the plain layers' multiply-adds at most."""

GROUP_CHANNELS = 4
"""Channels of a group up to which torch's GroupNorm is slow backwards in channels-last."""

ATTENTION_BYTES = 1 << 28
"""The largest matrix of attention weights that is made."""


META = "cpu"
"""The device that tensors without memory stand for; who follows a GPU's way with them puts `cuda` here for the time."""


def on_cpu(device: torch.device) -> bool:
    """Whether the rules for a CPU hold."""
    return kind(device) == "cpu"


def on_gpu(device: torch.device) -> bool:
    """Whether the kernels for a GPU are taken."""
    return kind(device) == "cuda"


def kind(device: torch.device) -> str:
    """The type of a device, or of the one that tensors without memory stand for."""
    return META if device.type == "meta" else device.type


def layout(device: torch.device, dtype: torch.dtype | None, *, training: bool, fused: bool) -> torch.memory_format:
    """The layout in which images go through a net.

    On a GPU in half precision, channels-last: its matrix units want it; in fp32 contiguous. On a CPU

    - without gradients: channels-last, 1.1 to 1.3 in fp32;
    - in training in bf16: channels-last if norms are fused; without, it is slower than contiguous fp32 (0.86), since
      torch's GroupNorm is slow backwards there;
    - in training in fp32: contiguous; channels-last reaches 0.95 of it.

    Args:
        device: where.
        dtype: of the arithmetic; None is fp32.
        training: whether there will be gradients.
        fused: whether norms and the activations behind them may be fused.
    """
    half = dtype is not None
    last = {"cuda": half, "cpu": not training or (half and fused)}.get(kind(device), False)
    return torch.channels_last if last else torch.contiguous_format


def threads(own: int, quota: float | None) -> int:
    """Threads to compute with.

    torch takes the CPUs that it may run on. A container with a quota may run on all of the machine's, a part of the
    time: threads beyond the quota stop each other, for all of them wait for the slowest. Not a matter of measurement;
    without a quota torch's own number stays. A data worker computes on one thread.

    Args:
        own: what torch takes.
        quota: CPUs that may be kept busy, if there is a limit.
    """
    return own if quota is None else max(1, min(own, ceil(quota)))


def is_of_images(net: nn.Module) -> bool:
    """Whether a net has no weights of other axes, for which torch has no channels-last layout of that name."""
    return all(p.dim() not in (3, 5) for p in net.parameters())


def phase_kernels_pay(device: torch.device, plain: int, taps: int, positions: int) -> bool:
    """Upsampling and convolution as one transposed convolution.

    Measured on pairs with 128 to 512 channels, 16x16 to 64x64 positions, kernel 3:

    | factor | fp32 forward | fp32 with backward | bf16 forward | bf16 with backward |
    | --- | --- | --- | --- | --- |
    | 4 | 1.5 to 4.0 | 2.4 to 4.2 | 1.3 to 5.1 | 1.8 to 5.0 |
    | 2 | 1.4 to 2.0 | 1.7 to 2.0 | 1.3 to 1.9 | 1.3 to 1.9 |

    With 3 to 64 channels it was faster in all but one of 14 cases, by up to 7.

    Args:
        device: where.
        plain: multiply-adds per low position, input and output channel, as they are written.
        taps: the same, fused.
        positions: low ones, over all samples.
    """
    return on_cpu(device) and taps * (positions + COMPOSING) < plain * positions


def composing_pays(
    device: torch.device, channels: tuple[int, int, int], taps: tuple[int, int, int], positions: tuple[int, int]
) -> bool:
    """A block's last convolution and a strided one behind it as one: counted, since it depends on all sizes.

    Block and strided convolution of the seed's encoder: 1.6 forward, 1.5 with backward.

    Args:
        device: where.
        channels: into the first, out of the first, out of the second.
        taps: of the first kernel, the second, and both as one.
        positions: behind the first, and behind the second, over all samples.
    """
    (a, b, c), (first, second, both), (large, small) = channels, taps, positions
    strided = small * b * c * second
    plain = large * a * b * first + strided
    making = a * b * c * first * second + COMPOSING * a * c * both
    return on_cpu(device) and small * a * c * both + strided + making < GAIN * plain


def own_padding_pays(device: torch.device) -> bool:
    """Zeros added by a convolution itself rather than by a layer in front: no copy of the input.

    Worth a tenth of the convolution forward, and nothing to be seen with backward. Where the upper end of an axis
    alone is padded and read, as in latent diffusion's encoders, a kernel with a row of zeros would do it, and takes 1.2
    to 1.9 times as long: there the copy stays.
    """
    return on_cpu(device)


def norm_silu_pays(x: Tensor, groups: int) -> bool:
    """GroupNorm and SiLU as one function that recomputes.

    With backward, in channels-last, by channels of a group: 3 at 1 (32 channels of 128x128, fp32 and bf16), 1.5 at 2
    (64 of 32x32), 1.1 to 1.3 at 4 (128 of 256x256), 0.8 at 8, 0.7 at 16; against norms in bf16 2.7 to 11 at 1 to 4. In
    contiguous layout 0.6 to 0.8. Forward alone 1.0 everywhere.

    On a GPU there are kernels in Triton, of which no time has been taken: they are used where fusing is `on`, and
    `auto` stays with torch's own.

    Args:
        x: (b, c, *space), what comes in.
        groups: of the norm.
    """
    if not on_cpu(x.device) or x.dim() != 4 or not torch.is_grad_enabled():
        return False
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return last and x.shape[1] <= GROUP_CHANNELS * groups


def plain_attention_pays(query: Tensor, key: Tensor) -> bool:
    """Attention as two products and a softmax, while the weights fit.

    In bf16 on a CPU: 1.3 to 2.2 forward and 1.7 to 2.9 with backward, at 256 to 4096 positions of 64 to 512 channels.
    In fp32 0.6 to 1.1: there the fused kernel, which keeps less.

    Args:
        query, key: (b, heads, positions, c).
    """
    size = 2 * prod(query.shape[:-1]) * key.shape[-2]
    return on_cpu(query.device) and query.dtype == torch.bfloat16 and size <= ATTENTION_BYTES
