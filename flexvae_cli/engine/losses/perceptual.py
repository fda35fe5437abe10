"""LPIPS, the perceptual distance of Zhang et al. (arXiv:1801.03924), version 0.1, with weights from a local file.

The architectures are torchvision's, built without weights; nothing is downloaded. The net is no part of the model: no
`state_dict` and no optimizer sees it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch
import torchvision
from torch import Tensor, nn

from flexvae_cli.api import Batch
from flexvae_cli.api.trace import text
from flexvae_cli.engine.tensorfiles import read_tensors
from flexvae_cli.errors import ModelError

SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # ImageNet's mean and deviation, for samples in [-1, 1]
EPSILON = 1e-10


class Backbone(NamedTuple):
    """A net of torchvision's: the places of its `features` behind which images are compared, and their channels."""

    name: str
    taps: tuple[int, ...]
    channels: tuple[int, ...]
    files: str


BACKBONES = {
    "vgg": Backbone("vgg16", (3, 8, 15, 22, 29), (64, 128, 256, 512, 512), "vgg16-397923af.pth vgg.pth"),
    "alex": Backbone("alexnet", (1, 4, 7, 9, 11), (64, 192, 384, 256, 256), "alexnet-owt-7be5be79.pth alex.pth"),
}


class LPIPS(nn.Module):
    """The distance of two images (b, 3, h, w) in [-1, 1] each: (b,).

    Args:
        features: the backbone as far as its last tap; it is frozen.
        taps: places in it.
        heads: how much each channel counts, (1, c, 1, 1) for each tap.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, features: nn.Sequential, taps: Sequence[int], heads: Sequence[Tensor]) -> None:
        super().__init__()
        self.features = features.requires_grad_(False)
        self.taps = frozenset(taps)
        for depth, head in enumerate(heads):
            self.register_buffer(f"head{depth}", head)
        self.register_buffer("shift", torch.tensor(SHIFT)[:, None, None])
        self.register_buffer("scale", torch.tensor(SCALE)[:, None, None])
        self.eval()

    def directions(self, x: Tensor) -> Iterator[Tensor]:
        """The features at each tap, of length 1 at every position, (b, c, h', w')."""
        x = (x - self.shift) / self.scale
        for place, layer in enumerate(self.features):
            x = layer(x)
            if place in self.taps:
                yield x / (torch.linalg.vector_norm(x, dim=1, keepdim=True) + EPSILON)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """`x` is what `y` is compared with: gradients go to `y` alone."""
        with torch.no_grad():
            wanted = list(self.directions(x))
        distances = [
            (self.get_buffer(f"head{depth}") * (one - two).square()).sum(dim=1).mean(dim=(1, 2))
            for depth, (one, two) in enumerate(zip(wanted, self.directions(y), strict=True))
        ]
        return torch.stack(distances).sum(dim=0)


class Perceptual:
    """LPIPS of samples with 1 or 3 channels, mean over samples."""

    def __init__(self, net: LPIPS) -> None:
        self.net = net

    def __call__(self, batch: Batch) -> Tensor:
        if (self.net.shift.device, self.net.shift.dtype) != (batch.x.device, batch.x.dtype):
            with torch.inference_mode(False):  # validation may come first
                self.net.to(batch.x)
        shape = (-1, 3, -1, -1)  # grey is repeated
        return self.net(batch.x.expand(shape), batch.reconstruction.expand(shape)).mean()


def load_lpips(net: Literal["vgg", "alex"], weights: str) -> Perceptual:
    """LPIPS with the weights of a safetensors file, which have the names that torchvision and LPIPS gave them.

    Raises:
        ModelError: the file is damaged, or has not got all the weights.
    """
    backbone, path = BACKBONES[net], Path(weights)
    with torch.device("meta"):
        whole = torchvision.models.get_model(backbone.name, weights=None).features
    features = nn.Sequential(*list(whole)[: max(backbone.taps) + 1])
    names = [f"lin{depth}.model.1.weight" for depth in range(len(backbone.taps))]
    wanted = {f"features.{name}": tuple(value.shape) for name, value in features.state_dict().items()}
    wanted |= {name: (1, count, 1, 1) for name, count in zip(names, backbone.channels, strict=True)}
    found = read_tensors(path)
    _require(wanted, found, path, f"flexvae import-pt {backbone.files} {path.name} --drop 'classifier.*'")
    own = {name: found[name].detach().to(torch.float32, copy=True) for name in wanted}  # not a map of the file
    features.load_state_dict({name: own[f"features.{name}"] for name in features.state_dict()}, assign=True)
    return Perceptual(LPIPS(features, backbone.taps, [own[name] for name in names]))


def _require(wanted: dict[str, tuple[int, ...]], found: dict[str, Tensor], path: Path, command: str) -> None:
    for name, shape in wanted.items():
        if name not in found or tuple(found[name].shape) != shape:
            has = f"has {text(tuple(found[name].shape))}" if name in found else "has none"
            what = f"is not the weights that LPIPS wants: {name} should be {text(shape)}, and the file {has}"
            raise ModelError(what, where=str(path), hint=f"make it with: {command}")
