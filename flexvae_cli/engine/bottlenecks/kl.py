"""The variational bottleneck."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flexvae_cli.api import Encoded, Gaussian


class KL(nn.Module):
    """Reads (b, 2c, *space) as mean and log-variance; draws the latent in training, takes the mean in evaluation."""

    def forward(self, x: Tensor) -> Encoded:
        mean, log_variance = x.chunk(2, dim=1)  # (b, c, *space) each
        log_variance = log_variance.clamp(-30.0, 20.0)  # exp stays finite in fp32
        posterior = Gaussian(mean, log_variance)
        if not self.training:
            return Encoded(mean, posterior)
        noise = torch.randn(mean.shape, dtype=mean.dtype, device=mean.device)  # the same in every memory layout
        return Encoded(mean + torch.exp(0.5 * log_variance) * noise, posterior)

    def sample(self, shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
        """Latents of `shape` (b, c, *space) from the prior, the standard normal."""
        return torch.randn(shape, generator=generator)
