"""rFID: the Frechet distance of Inception features of images and their reconstructions (arXiv:1706.08500).

The net is the Inception of December 2015 that FID is defined by, images are prepared as torch-fidelity prepares them:
rounded to 8 bits and resized as TensorFlow 1 did. The weights come from a local file; nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import Inception3

from flexvae_cli.api.trace import text
from flexvae_cli.engine.evaluation.frechet import frechet_distance
from flexvae_cli.engine.metrics import to_levels, to_unit
from flexvae_cli.engine.reading import digest_of
from flexvae_cli.engine.tensorfiles import read_tensors
from flexvae_cli.errors import ModelError, UsageError

if TYPE_CHECKING:
    from flexvae_cli.engine.model import Model

SIDE = 299  # pixels that the net takes
FEWEST = 2  # images that have a covariance
HINT = "make it with: flexvae import-pt weights-inception-2015-12-05-6726825d.pth"
_AVERAGE = partial(F.avg_pool2d, kernel_size=3, stride=1, padding=1, count_include_pad=False)
_LARGEST = partial(F.max_pool2d, kernel_size=3, stride=1, padding=1)
# where TensorFlow's net pools otherwise than torchvision's: without the padding in its averages, and once the maximum
_POOLS = {f"Mixed_{name}": _AVERAGE for name in ("5b", "5c", "5d", "6b", "6c", "6d", "6e", "7b")} | {
    "Mixed_7c": _LARGEST
}
_LAYERS = (
    *("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "maxpool1", "Conv2d_3b_1x1", "Conv2d_4a_3x3", "maxpool2"),
    *(f"Mixed_{name}" for name in ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c")),
    "avgpool",
)


class Inception:
    """2,048 features of every image.

    Args:
        weights: a safetensors file with the names that torch-fidelity and pytorch-fid gave the weights.
        device: where to compute.

    Raises:
        ModelError: the file is damaged, or has not got all the weights.
    """

    def __init__(self, weights: Path, device: torch.device) -> None:
        with torch.device("meta"):
            net = Inception3(num_classes=1008, aux_logits=False, init_weights=False)
        net.fc = nn.Identity()
        found = read_tensors(weights)
        wanted = {name: value for name, value in net.state_dict().items() if not name.endswith("num_batches_tracked")}
        for name, value in wanted.items():
            if name not in found or found[name].shape != value.shape:
                has = f"has {text(tuple(found[name].shape))}" if name in found else "has none"
                what = f"is not the weights of FID's Inception: {name} should be {text(tuple(value.shape))}"
                raise ModelError(f"{what}, and the file {has}", where=str(weights), hint=f"{HINT} {weights.name}")
        own = {name: found[name].detach().to(torch.float32, copy=True) for name in wanted}  # not a map of the file
        net.load_state_dict(own, strict=False, assign=True)
        self.layers = [(getattr(net, name).eval().to(device), _POOLS.get(name)) for name in _LAYERS]
        self.device = device

    @torch.inference_mode()
    def __call__(self, images: Sequence[Tensor]) -> Tensor:
        """Samples (c, h, w) in [-1, 1], grey or RGB, of any size -> float32 (n, 2048) on the host."""
        levels = [to_levels(to_unit(image)).mul(255).expand(3, -1, -1)[None].to(self.device) for image in images]
        x = (torch.cat([resized(each, SIDE) for each in levels]) - 128) / 128  # (n, 3, 299, 299)
        for layer, pool in self.layers:
            out = layer(x)
            if pool is not None:  # the last branch is the pooled one
                pooled = layer.branch_pool(pool(x))
                out = torch.cat([out[:, : -pooled.shape[1]], pooled], dim=1)
            x = out
        return x.flatten(1).cpu()


def resized(x: Tensor, side: int) -> Tensor:
    """Images (b, c, h, w) -> (b, c, side, side), bilinear as TensorFlow 1 did it: corners aligned at the top left.

    Output i is read at i * size / side, between the two nearest pixels, whatever the scale.
    """
    for axis in (2, 3):
        size = x.shape[axis]
        at = torch.arange(side, device=x.device, dtype=x.dtype) * (size / side)
        low = at.long()
        share = (at - low).view((-1, 1) if axis == 2 else (-1,))
        first, second = (x.index_select(axis, index) for index in (low, (low + 1).clamp_max(size - 1)))
        x = first + (second - first) * share
    return x


class ReconstructionFID:
    """Gathers the features of images and their reconstructions, 8 KB each; `value` is their distance.

    Args:
        weights: as in `Inception`.
        model: whose images are measured; the net goes to its device.

    Attributes:
        stamp: how images are prepared, and with which weights.

    Raises:
        ModelError: see `Inception`.
        UsageError: the model's images have neither 1 nor 3 channels.
    """

    def __init__(self, weights: Path, model: Model) -> None:
        channels = model.net.shape[0]
        if channels not in (1, 3):
            raise UsageError(f"rFID takes grey or RGB images, not such with {channels} channels", where="--inception")
        self.features = Inception(weights, model.device)
        self.stamp = f"8-bit, resized to {SIDE} as by TensorFlow 1, weights {digest_of(weights).sha256}"
        self.gathered: tuple[list[Tensor], list[Tensor]] = ([], [])

    def add(self, originals: Sequence[Tensor], reconstructions: Sequence[Tensor]) -> None:
        """Take in samples (c, h, w) in [-1, 1] of any sizes."""
        for kept, images in zip(self.gathered, (originals, reconstructions), strict=True):
            kept.append(self.features(images))

    def value(self) -> float | None:
        """The distance; None for fewer than two images."""
        a, b = (torch.cat(kept) for kept in self.gathered)
        return frechet_distance(a, b) if len(a) >= FEWEST else None
