"""The autoencoder as a module."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flexvae_cli.api import Batch, Encoded
from flexvae_cli.engine.bottlenecks.quantized import quantizers_told, with_entries


class VAE(nn.Module):
    """Encoder, bottleneck, decoder. Samples are (b, c, *space) in [-1, 1].

    Args:
        encoder: (b, c, *space) to what the bottleneck takes.
        bottleneck: the encoder's output to `Encoded`.
        decoder: latents (b, c', *space') to samples, or to their logits.
        logits: whether the decoder's output is logits, mapped to samples by a sigmoid.
    """

    def __init__(self, encoder: nn.Module, bottleneck: nn.Module, decoder: nn.Module, *, logits: bool = False) -> None:
        super().__init__()
        self.encoder = encoder
        self.bottleneck = bottleneck
        self.decoder = decoder
        self.logits = logits

    def encode(self, x: Tensor) -> Encoded:
        """Under autocast the bottleneck still computes in fp32: an exponential, or a search for the nearest code."""
        h = self.encoder(x)
        with torch.autocast(h.device.type, enabled=False):
            return self.bottleneck(at_least_fp32(h))

    def to_samples(self, output: Tensor) -> Tensor:
        """The decoder's output as samples: not clamped, so that a loss has gradients beyond [-1, 1]."""
        return output.sigmoid() * 2 - 1 if self.logits else output

    def decode(self, z: Tensor) -> Tensor:
        return self.to_samples(at_least_fp32(self.decoder(z)))

    def forward(self, x: Tensor) -> Batch:
        """Quantizing entries of encoder and decoder add to `loss` and `stats` of what the bottleneck gives."""
        with quantizers_told() as found:
            encoded = self.encode(x)
            output = at_least_fp32(self.decoder(encoded.z))
        return Batch(x, output, self.to_samples(output), with_entries(encoded, found))


def at_least_fp32(x: Tensor) -> Tensor:
    """Half precision, as autocast leaves it, as fp32; everything else as it is."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
