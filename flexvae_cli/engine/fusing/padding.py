"""Zeros around a convolution's input, added by the convolution itself instead of in a copy of its input.

A convolution pads both ends of an axis alike. What a layer adds beyond that at the upper end is left out where no
window reaches it, which depends on the size; elsewhere the copy is needed, and made.
"""

from __future__ import annotations

from torch import Tensor, nn

from flexvae_cli.engine import rules
from flexvae_cli.engine.fusing.fusion import Convolution, Fusion, is_convolution, sizes
from flexvae_cli.engine.fusing.strided import PLAIN

ZEROS = (nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d)


class PaddedConvolution(Fusion):
    """The pair as one convolution with a padding of its own.

    Args:
        padding: the layer that adds zeros.
        convolution: what reads them.
        low, high: zeros at either end of each axis, those of the convolution included.
    """

    what = "padding by the convolution itself"

    def __init__(
        self,
        padding: nn.Module,
        convolution: Convolution,
        low: tuple[int, ...],
        high: tuple[int, ...],
        *,
        always: bool = False,
    ) -> None:
        super().__init__(padding, convolution, always=always)
        self.low, self.high = low, high

    @classmethod
    def of(cls, first: nn.Module, second: nn.Module, *, always: bool = False) -> PaddedConvolution | None:
        """The fusion of two layers, where they are such a pair."""
        if type(first) not in ZEROS or not is_convolution(second) or not isinstance(second, Convolution):
            return None
        axes = len(second.kernel_size)
        amounts, own = first.padding, sizes(second.padding, axes)
        if own is None or second.padding_mode != "zeros" or len(amounts) != 2 * axes:  # type: ignore[arg-type]
            return None
        pairs = [(int(amounts[2 * i]), int(amounts[2 * i + 1])) for i in reversed(range(axes))]  # type: ignore[index]
        low, high = (tuple(pair[end] + p for pair, p in zip(pairs, own, strict=True)) for end in (0, 1))
        if any(a < 0 or a > b for a, b in zip(low, high, strict=True)):
            return None
        return cls(first, second, low, high, always=always)

    def pays(self, x: Tensor) -> bool:
        return rules.own_padding_pays(x.device)

    def together(self, x: Tensor) -> Tensor:
        first, second = self.layers
        assert isinstance(second, Convolution)
        if not self._reaches_no_further(tuple(x.shape[2:]), second):
            out: Tensor = second(first(x))
            return out
        return PLAIN[x.dim() - 2](  # type: ignore[operator, no-any-return]
            x, second.weight, second.bias, second.stride, self.low, second.dilation, second.groups
        )

    def _reaches_no_further(self, space: tuple[int, ...], convolution: Convolution) -> bool:
        """Whether no window sees what the upper ends have more than the lower ones."""
        size = zip(convolution.kernel_size, convolution.dilation, strict=True)
        reach = [d * (k - 1) + 1 for k, d in size]
        each = zip(space, self.low, self.high, reach, convolution.stride, strict=True)
        return all(b - a <= (n + a + b - k) % s for n, a, b, k, s in each if b > a)
