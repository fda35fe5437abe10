"""What keeps the discriminator from winning too fast: the R1 penalty and LeCam."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

DECAY = 0.99  # of LeCam's running means, as in the authors' code


def r1_penalty(discriminator: nn.Module, x: Tensor) -> Tensor:
    """R1 of Mescheder et al. (arXiv:1801.04406): 1/2 mean over samples of ||d D(x) / dx||^2, with its graph.

    D(x) is the mean of a sample's logits: the single number for which the losses, being means, stand, and whose
    gradient the autoencoder follows. The squared norm sums over a sample's elements. Computed in fp32.

    Args:
        discriminator: (b, c, *space) -> logits (b, k, *space').
        x: samples (b, c, *space).
    """
    x = x.detach().float().requires_grad_()
    # attention has other kernels, which cannot be differentiated twice
    with torch.autocast(x.device.type, enabled=False), sdpa_kernel(SDPBackend.MATH):
        score = discriminator(x).flatten(1).mean(dim=1).sum()
        (gradient,) = torch.autograd.grad(score, x, create_graph=True)
    return 0.5 * gradient.flatten(1).square().sum(dim=1).mean()


class LeCam:
    """LeCam regularization (Tseng et al., arXiv:2104.03310): logits are kept near what the others were so far.

        mean(max(0, real - m_fake)^2) + mean(max(0, m_real - fake)^2)

    in the one-sided form of the authors' code. m_real and m_fake are running means of the mean logits of samples and of
    reconstructions, with decay 0.99, freed of their start at 0 as Adam's are; before the first update they are 0. They
    are updated once per optimizer step, behind it, with the means over the whole batch: within a step every
    micro-batch meets the same two numbers, so the gradient does not depend on how the batch is cut.

    Args:
        device: where the logits are.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.sums = torch.zeros(2, device=device)  # of real and fake, not yet freed of their start
        self.mass = torch.zeros((), device=device)  # 1 - decay^updates

    @property
    def means(self) -> tuple[Tensor, Tensor]:
        """m_real and m_fake, scalars."""
        real, fake = (self.sums / self.mass.clamp_min(torch.finfo(torch.float32).tiny)).unbind()
        return real, fake

    def __call__(self, real: Tensor, fake: Tensor) -> Tensor:
        """The regularization of logits (b, k, *space) of samples and of reconstructions."""
        mean_real, mean_fake = self.means
        return F.relu(real - mean_fake).square().mean() + F.relu(mean_real - fake).square().mean()

    def update(self, real: Tensor, fake: Tensor) -> None:
        """Take in the mean logits of a step; numbers that are not finite are passed over, on the device."""
        drawn = torch.stack([real.detach(), fake.detach()])
        weight = (1 - DECAY) * torch.isfinite(drawn).all()
        self.sums = torch.lerp(self.sums, drawn.nan_to_num(0.0, 0.0, 0.0), weight)
        self.mass = torch.lerp(self.mass, torch.ones_like(self.mass), weight)

    def tensors(self) -> dict[str, Tensor]:
        return {"sums": self.sums, "mass": self.mass}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """The way back from `tensors`.

        Raises:
            ValueError: it is of another kind.
        """
        if {name: t.shape for name, t in tensors.items()} != {name: t.shape for name, t in self.tensors().items()}:
            raise ValueError("its running means are missing or of another kind")
        self.sums, self.mass = (tensors[name].to(self.sums) for name in ("sums", "mass"))
