"""LPIPS of one image at a time, at its own size."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from flexvae_cli.builtin_losses import LEAST_SIDES
from flexvae_cli.engine.losses.perceptual import load_lpips
from flexvae_cli.engine.reading import digest_of
from flexvae_cli.engine.tensorfiles import read_tensors
from flexvae_cli.errors import UsageError

if TYPE_CHECKING:
    from flexvae_cli.engine.model import Model

WIDE_KERNEL = 11  # of AlexNet's first convolution; that of VGG16 has 3


class PerceptualDistance:
    """LPIPS (arXiv:1801.03924), version 0.1; whose net it is, the weights tell.

    Args:
        weights: a safetensors file, as the loss `lpips` takes it.
        model: whose images are measured; the net goes to its device.

    Attributes:
        stamp: which net with which weights it is.

    Raises:
        ModelError: the file is damaged, or has not got all the weights.
        UsageError: the model's images have neither 1 nor 3 channels.
    """

    def __init__(self, weights: Path, model: Model) -> None:
        channels = model.net.shape[0]
        if channels not in (1, 3):
            raise UsageError(f"LPIPS compares grey or RGB images, not such with {channels} channels", where="--lpips")
        first = read_tensors(weights).get("features.0.weight")
        wide = first is not None and first.shape[-1:] == (WIDE_KERNEL,)
        self.name: Literal["vgg", "alex"] = "alex" if wide else "vgg"
        self.net = load_lpips(self.name, str(weights)).net.to(model.device)
        self.device = model.device
        self.stamp = f"version 0.1, {self.name}, weights {digest_of(weights).sha256}"

    @torch.inference_mode()
    def __call__(self, a: Tensor, b: Tensor) -> float | None:
        """The distance of two samples (c, h, w) in [-1, 1], 0 at least; None where they are too small for the net."""
        if min(a.shape[1:]) < LEAST_SIDES[self.name]:
            return None
        x, y = (each[None].expand(-1, 3, -1, -1).to(self.device) for each in (a, b))
        return self.net(x, y).item()
