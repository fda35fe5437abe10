"""A trained autoencoder as it is used: any size in, the same size out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flexvae_cli import plugins
from flexvae_cli.api import Encoded
from flexvae_cli.engine import rules
from flexvae_cli.engine.build import build_vae, meta_step
from flexvae_cli.engine.data.images import pillow_array, to_tensor
from flexvae_cli.engine.fusing import fuse as fuse_layers
from flexvae_cli.engine.fusing.graph import Wanted, wanted_here
from flexvae_cli.engine.modelfiles import ModelFiles, find_model, require_same_tensors
from flexvae_cli.engine.vae import VAE
from flexvae_cli.errors import ModelError, UsageError
from flexvae_cli.net import Net, from_description

if TYPE_CHECKING:
    from PIL import Image

    from flexvae_cli.api import Shape


class Model(nn.Module):
    """An autoencoder with its weights and everything that using it takes.

    Sizes that the structure cannot take are padded at the end of each axis, by reflection, and cropped back.

    Attributes:
        vae: the nets.
        net: the structures that they were built from, which can be traced without running them.
        description: what the model file says: input, preprocessing, latent statistics, plugins.
        path: the directory that it was loaded from.
        weights_hash: sha256 of the weights file; latents are bound to it.
        tile: side of the tiles that it is run in, which makes what it gives approximate; None where it is not.
    """

    tile: int | None = None

    def __init__(self, vae: VAE, net: Net, description: dict[str, Any], path: Path, weights_hash: str) -> None:
        super().__init__()
        self.vae = vae
        self.net = net
        self.description = description
        self.path = path
        self.weights_hash = weights_hash
        self.eval()

    @property
    def device(self) -> torch.device:
        return next(self.parameters(), torch.empty(0)).device

    def forward(self, x: Tensor) -> Tensor:
        """Samples (b, c, *space) in [-1, 1] to their reconstructions, the same shape, clamped to [-1, 1]."""
        return self.decode(self.encode(x), size=tuple(x.shape[2:]))

    def encode(self, x: Tensor) -> Tensor:
        """Samples (b, c, *space) in [-1, 1] to latents (b, c', *space'): means where there is a posterior."""
        return self.encoded(x).z

    def encoded(self, x: Tensor) -> Encoded:
        """Like `encode`, with all that the bottleneck gives (posterior, indices)."""
        self._require_channels(x, self.net.shape[0], "samples")
        return self.vae.encode(self.padded(x))

    def decode(self, z: Tensor, size: Shape | None = None) -> Tensor:
        """Latents (b, c', *space') to samples in [-1, 1], cropped to `size` where it is given."""
        self._require_channels(z, self.net.latent_shape[0], "latents")
        x = self.vae.decode(z).clamp(-1.0, 1.0)
        return x if size is None else x[(slice(None), slice(None), *(slice(n) for n in size))]

    def padded(self, x: Tensor) -> Tensor:
        """`x` grown at the end of each axis to the smallest size that comes back as large as it went in."""
        space = tuple(x.shape[2:])
        missing = [new - old for new, old in zip(self.net.fitting(space), space, strict=True)]
        if not any(missing):
            return x
        reflects = all(pad < n for pad, n in zip(missing, space, strict=True))
        amounts = [amount for pad in reversed(missing) for amount in (0, pad)]
        return F.pad(x, amounts, mode="reflect" if reflects else "replicate")

    def preprocess(self, image: Image.Image) -> Tensor:
        """A Pillow image as a sample (c, h, w) in [-1, 1], prepared as the training images were."""
        how = self.description.get("preprocessing", {})
        array = pillow_array(image, self.net.shape[0], how.get("background", "#ffffff"), exif=how.get("exif", True))
        return to_tensor(array)

    def prior(self, count: int, size: Shape, *, generator: torch.Generator, fitted: bool = False) -> Tensor:
        """Latents (count, c', *space') for samples of `size`.

        Args:
            size: height and width, say, of the samples; rounded up to what the net can take.
            fitted: draw each channel from a normal with the mean and deviation measured in training.

        Raises:
            UsageError: the bottleneck has no prior, or the model carries no latent statistics.
        """
        shape = self.latent_shape(size)
        if fitted:
            statistics = self.description.get("latents")
            if not statistics:
                raise UsageError("the model carries no latent statistics", where=str(self.path))
            axes = (1, -1, *(1 for _ in shape[1:]))
            mean, std = (torch.tensor(statistics[key]).view(axes) for key in ("mean", "std"))
            return (mean + std * torch.randn(count, *shape, generator=generator)).to(self.device)
        sample = getattr(self.vae.bottleneck, "sample", None)
        if sample is None:
            code = self.net.bottleneck.code
            raise UsageError(
                f"the bottleneck {code} has no prior to draw from", where=str(self.path), hint="use --fitted"
            )
        return sample((count, *shape), generator=generator).to(self.device)

    def latent_shape(self, size: Shape) -> Shape:
        """The shape (c', *space') of the latent of a sample of `size`."""
        return self.net.traces((self.net.shape[0], *self.net.fitting(size)), [])[1].gives

    def _require_channels(self, x: Tensor, channels: int, what: str) -> None:
        if x.dim() != len(self.net.shape) + 1 or x.shape[1] != channels:
            axes = " x ".join(["batch", str(channels), *("space" for _ in self.net.shape[1:])])
            raise UsageError(f"{what} are {axes}, not {' x '.join(str(n) for n in x.shape)}", where=str(self.path))


def load(
    path: str | Path,
    *,
    device: str | torch.device = "cpu",
    fuse: Wanted = "auto",
    dtype: torch.dtype | None = None,
) -> Model:
    """Load a model from a run directory, a checkpoint or a bundle; see `flexvae_cli.load_model`."""
    return load_files(find_model(Path(path)), device=device, fuse=fuse, dtype=dtype)


def load_files(
    found: ModelFiles,
    *,
    device: str | torch.device = "cpu",
    fuse: Wanted = "auto",
    dtype: torch.dtype | None = None,
) -> Model:
    """Build the model that verified files describe, in the form that is fastest without gradients.

    Args:
        found: the files.
        device: where it is to compute.
        fuse: whether layers that follow each other compute as one, see `fusing.fuse`; with `auto`, the environment
            variable FLEXVAE_FUSE decides where it is set.
        dtype: of the autocast under which it will be called, None for none; a GPU's layout depends on it.

    Raises:
        ModelError: the weights do not fit the description, or a plugin is missing.
    """
    net = from_description(found.model, plugins.installed().registry, str(found.path), meta_step)
    with torch.random.fork_rng(
        devices=[]
    ):  # the weights drawn here are overwritten; the caller's stream is not touched
        vae = build_vae(net, logits=found.model.get("output") == "logits")
    weights = found.weights()
    require_same_tensors(weights, vae.state_dict(), found.path)
    vae.load_state_dict(weights)
    vae = in_use(vae.to(device), wanted_here(fuse), dtype)
    return Model(vae, net, found.model, found.path, found.weights_hash)


def in_use(vae: VAE, fuse: Wanted = "auto", dtype: torch.dtype | None = None) -> VAE:
    """A net, on its device, in the form and the layout that are fastest without gradients; it is changed in place.

    Args:
        vae: the net.
        fuse, dtype: as in `load_files`.
    """
    fuse_layers(vae, fuse)
    device = next(vae.parameters(), torch.empty(0)).device
    if rules.is_of_images(vae):
        vae.to(memory_format=rules.layout(device, dtype, training=False, fused=fuse != "off"))  # type: ignore[call-overload]
    return vae


def same_model(model: Model, weights_hash: str, where: str) -> None:
    """Refuse latents of another model.

    Raises:
        ModelError: the latents were made by other weights.
    """
    if model.weights_hash != weights_hash:
        raise ModelError(
            f"these latents were made by another model (weights {weights_hash[:12]}, not {model.weights_hash[:12]})",
            where=where,
            hint="decode them with the model that encoded them",
        )
