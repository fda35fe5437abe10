"""Latents as a data set that training reads."""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from flexvae_cli.api.trace import text
from flexvae_cli.engine.latents.opening import open_latents, verified_file
from flexvae_cli.engine.latents.values import FLIP, INDICES, STD, Row, Values
from flexvae_cli.engine.manifest import MANIFEST, LatentImage, read_manifest
from flexvae_cli.engine.normalization import Normalization
from flexvae_cli.engine.packing import unpack
from flexvae_cli.engine.randomness import generator, seed_of
from flexvae_cli.errors import ModelError, UsageError

if TYPE_CHECKING:
    from flexvae_cli.api import Shape

MAPPED, READ = 64, 4  # files kept open: those that are mapped into memory, and those that are read into it
Scaling = Literal["raw", "normalized"]


class LatentSample(NamedTuple):
    """One latent.

    Attributes:
        z: float32 (c, *space), or int64 (q, *space) where indices are stored.
        label: the number of the image's top-level folder.
    """

    z: Tensor
    label: int


class LatentDataset(Dataset[LatentSample]):
    """A folder that `flexvae encode` wrote, as torch's data loaders take it.

    Where moments are stored a sample is `mean + std * noise`; where flips are stored every second one, on average, is
    that of the mirrored image. Noise and flips are functions of (seed, epoch, index) and of nothing else: they do not
    depend on the number of workers, and an epoch that is repeated gives the same numbers.

    Args:
        path: the folder.
        shape: keep only latents of this shape, since a batch wants one; None keeps all.
        sample: draw from the posterior where it is stored; else give its mean.
        flips: mirror where mirrored latents are stored.
        scaling: `raw`, as the decoder takes them, or `normalized`; None gives what is stored.
        seed: all randomness follows from it, and from the epoch.
        verify: read all files through and through and compare them with the manifest first.

    Attributes:
        names: of the images, in order.
        sizes: (height, width) of the images, in order.
        labels: the names of the labels.
        shapes: how many latents there are of each shape.
        weights_hash: what tells the model that made them.

    Raises:
        ModelError: the folder is not complete, or damaged, or cannot be normalized.
        UsageError: there are no latents of that shape.

    Example:
        >>> from flexvae_cli import LatentDataset
        >>> latents = LatentDataset("latents/", scaling="normalized")          # doctest: +SKIP
        >>> loader = torch.utils.data.DataLoader(latents, batch_size=256)       # doctest: +SKIP
        >>> for epoch in range(10):                                             # doctest: +SKIP
        ...     latents.set_epoch(epoch)
        ...     for z, label in loader: ...
    """

    def __init__(
        self,
        path: str | Path,
        *,
        shape: Shape | None = None,
        sample: bool = True,
        flips: bool = True,
        scaling: Scaling | None = None,
        seed: int = 0,
        verify: bool = False,
    ) -> None:
        self.path = Path(path)
        manifest = read_manifest(self.path)
        about = manifest.latents
        self.layout = manifest.layout
        self._numbers = about.value != INDICES
        self.labels = list(manifest.labels)
        self.weights_hash = manifest.model.weights_hash
        self.scaling: Scaling = scaling or about.scaling
        self.seed = seed
        self._files = {file.path: file for file in manifest.files}
        self.shapes = Counter(tuple(self._files[image.file].shape) for image in manifest.images)
        self._images = [i for i in manifest.images if shape is None or self._shape_of(i) == tuple(shape)]
        if not self._images:
            there = ", ".join(text(each) for each in self.shapes)
            raise UsageError(f"holds no latents of shape {text(shape or ())}, only of {there}", where=str(self.path))
        if scaling == "normalized":
            self.require_numbers()
        self.normalization = (
            self._normalization(about.statistics) if "normalized" in (self.scaling, about.scaling) else None
        )
        self.values = Values.of(about, self.normalization if about.scaling == "normalized" else None)
        self._samples = sample and about.value == "moments"
        self._flips = flips and about.flip
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # so that workers that persist see it change
        if verify:
            self.verify()

    def verify(self) -> None:
        """Read all files through and through and compare them with the manifest.

        Raises:
            ModelError: one is not what the manifest says.
        """
        for file in self._files.values():
            verified_file(self.path, file, self.layout, self.values)

    @property
    def names(self) -> list[str]:
        return [image.name for image in self._images]

    @property
    def sizes(self) -> list[Shape]:
        return [tuple(image.size) for image in self._images]

    def set_epoch(self, epoch: int) -> None:
        """Noise and flips are those of this epoch from here on, in the workers of a data loader as well."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, at: int | tuple[int, int]) -> LatentSample:
        """The latent at an index, or at (epoch, index).

        Raises:
            IndexError: there is none.
            ModelError: its file is missing, or not what the manifest says.
        """
        epoch, index = at if isinstance(at, tuple) else (int(self._epoch), at)
        index = range(len(self))[index]  # from the end where it is negative
        image = self._images[index]
        row = {key: tensor[image.index : image.index + 1] for key, tensor in self._opened(image.file).items()}
        flip = FLIP if self._flips and seed_of(self.seed, "flip", epoch, index) % 2 else ""
        if self.values.width is not None:
            packed = row[INDICES + flip][0]
            return LatentSample(unpack(packed, self._shape_of(image), self.values.width), image.label)
        z = self.values.numbers(row, flip)  # (1, c, *space)
        if self._samples:
            noise = torch.randn(z.shape, generator=generator(self.seed, "noise", epoch, index))
            z = z + self.values.numbers(row, flip, STD) * noise
        return LatentSample(self._scaled(z)[0], image.label)

    def image(self, index: int) -> LatentImage:
        """What the manifest says of the image of a latent."""
        return self._images[index]

    def shape_of(self, index: int) -> Shape:
        """(c, *space) of a latent."""
        return self._shape_of(self._images[index])

    def moments(self, index: int) -> tuple[Tensor, Tensor | None]:
        """The mean (c, *space) of a latent, or what is stored of it, and its deviation where that is stored.

        Raises:
            ModelError: its file is missing, or not what the manifest says, or holds indices, which are no numbers.
        """
        image = self._images[index]
        self.require_numbers()
        row = {key: tensor[image.index : image.index + 1] for key, tensor in self._opened(image.file).items()}
        mean = self._scaled(self.values.numbers(row))[0]
        return mean, self._widened(self.values.numbers(row, part=STD))[0] if self._samples else None

    def raw(self, z: Tensor) -> Tensor:
        """What this data set gives, one (c, *space) or a batch (b, c, *space), with a normalization undone.

        Raises:
            UsageError: it is neither, or has other channels.
        """
        if self.scaling == "raw" or self.normalization is None:
            return z
        axes = len(next(iter(self.shapes)))
        if z.dim() not in (axes, axes + 1):
            raise UsageError(f"latents of this data set have {axes} axes, and batches one more, not {z.dim()}")
        return self.normalization.raw(z) if z.dim() > axes else self.normalization.raw(z[None])[0]

    def _scaled(self, stored: Tensor) -> Tensor:
        is_normalized = self.values.normalization is not None
        if self.normalization is None or is_normalized == (self.scaling == "normalized"):
            return stored
        return self.normalization.raw(stored) if is_normalized else self.normalization.normalized(stored)

    def _widened(self, stored: Tensor) -> Tensor:
        """Deviations on the scale of what this data set gives."""
        is_normalized = self.values.normalization is not None
        if self.normalization is None or is_normalized == (self.scaling == "normalized"):
            return stored
        return self.normalization.widened(stored) if is_normalized else self.normalization.narrowed(stored)

    def _normalization(self, statistics: dict[str, Any]) -> Normalization:
        channels = {shape[0] for shape in self.shapes}
        return Normalization.of(statistics, channels.pop(), str(self.path / MANIFEST), "use scaling='raw'")

    def _shape_of(self, image: LatentImage) -> Shape:
        return tuple(self._files[image.file].shape)

    @property
    def _opened(self) -> Any:
        if "_cache" not in self.__dict__:
            most = READ if self.layout == "wds" else MAPPED
            self._cache = lru_cache(maxsize=most)(self._open)
        return self._cache

    def _open(self, path: str) -> Row:
        return open_latents(self.path, self._files[path], self.layout, self.values)

    def __getstate__(self) -> dict[str, Any]:
        """What a worker is given: all but the files that are open."""
        return {key: value for key, value in self.__dict__.items() if key != "_cache"}

    def require_numbers(self) -> None:
        """Refuse what a quantizer made.

        Raises:
            ModelError: what is stored are indices.
        """
        if not self._numbers:
            what = "holds indices of a quantizer, which are no numbers that an autoencoder could take"
            raise ModelError(what, where=str(self.path), hint="encode with `--latents raw`")

    def require_model(self, weights_hash: str) -> None:
        """Refuse to go on with another model than that which made the latents.

        Raises:
            ModelError: it is another one.
        """
        if weights_hash != self.weights_hash:
            what = f"was made by another model (weights {self.weights_hash[:12]}, not {weights_hash[:12]})"
            raise ModelError(what, where=str(self.path))
