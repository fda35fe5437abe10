"""What is stored of an image's latent: which numbers, on which scale, in which type, at which error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import torch
from torch import Tensor

from flexvae_cli.engine.packing import pack, packed_size
from flexvae_cli.engine.randomness import generator
from flexvae_cli.errors import ModelError, UsageError

if TYPE_CHECKING:
    from flexvae_cli.api import Encoded, Shape
    from flexvae_cli.engine.manifest import Latents
    from flexvae_cli.engine.normalization import Normalization

Value = Literal["moments", "mean", "sample", "output", "indices"]
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "int8": torch.int8}
NAMES = {dtype: str(dtype).removeprefix("torch.") for dtype in DTYPES.values()}  # as manifests and messages have them
LEVELS = 255  # steps of int8 from the least to the greatest number of a channel
LATENTS, STD, SCALE, OFFSET, FLIP = "latents", "_std", "_scale", "_offset", "_flip"  # names of tensors and endings
INDICES: Final = "indices"
Row = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Stored:
    """What is written of one image.

    Attributes:
        tensors: by name, without an axis for the batch.
        shape: (c, *space) of its latent, (q, *space) of its indices.
        squares, peak: the sum of the squared differences that the type costs, and the greatest of them.
        numbers: how many numbers were rounded.
    """

    tensors: Row
    shape: Shape
    squares: float = 0.0
    peak: float = 0.0
    numbers: int = 0


@dataclass(frozen=True, slots=True)
class Values:
    """Which numbers to store, and how.

    Attributes:
        value: what of the posterior, or the bottleneck's `output` where it has none, or a quantizer's `indices`.
        dtype: the type of the numbers.
        normalization: what is applied to them; None leaves them raw.
        flip: store the same of the mirrored image as well.
        seed: what samples are drawn from, together with the name of the image.
        width: bits of an index.
    """

    value: Value
    dtype: torch.dtype = torch.float32
    normalization: Normalization | None = None
    flip: bool = False
    seed: int = 0
    width: int | None = None

    @classmethod
    def of(cls, latents: Latents, normalization: Normalization | None) -> Values:
        """What a manifest says; `normalization` is the one that it records."""
        packed = latents.dtype.removeprefix("uint")
        width = int(packed) if packed != latents.dtype else None
        dtype = torch.float32 if width else getattr(torch, latents.dtype)
        return cls(latents.value, dtype, normalization, latents.flip, latents.seed or 0, width)

    def expected(self, key: str, count: int, shape: Shape) -> tuple[torch.dtype, Shape]:
        """The type and the shape of a tensor of `keys` in a file of so many latents."""
        if self.width is not None:
            return torch.uint8, (count, packed_size(shape, self.width))
        if key.endswith((SCALE, OFFSET)):
            return torch.float32, (count, shape[0])
        return self.dtype, (count, *shape)

    def numbers(self, row: Mapping[str, Tensor], flip: str = "", part: str = "") -> Tensor:
        """The stored latents (n, c, *space) of a file as float32; `part` is `_std` for their deviations."""
        return widen(row, LATENTS + flip + part)

    def raw(self, row: Mapping[str, Tensor], flip: str = "") -> Tensor:
        """The latents (n, c, *space) of a file as the decoder takes them."""
        numbers = self.numbers(row, flip)
        return numbers if self.normalization is None else self.normalization.raw(numbers)

    @property
    def stored_type(self) -> str:
        """What a manifest calls the type."""
        return f"uint{self.width}" if self.width else NAMES[self.dtype]

    @property
    def keys(self) -> list[str]:
        """The names of the tensors of an image, in the order in which a layout without names has them."""
        if self.value == "indices":
            return [INDICES + flip for flip in self._variants]
        parts = ["", STD] if self.value == "moments" else [""]
        rounded = ["", SCALE, OFFSET] if self.dtype == torch.int8 else [""]
        return [LATENTS + flip + part + each for flip in self._variants for part in parts for each in rounded]

    @property
    def _variants(self) -> list[str]:
        return ["", FLIP] if self.flip else [""]

    def store(self, encoded: Encoded, names: Sequence[str], flip: str = "") -> list[Stored]:
        """What is written of every image of a batch.

        Args:
            encoded: what the bottleneck gave of (b, c, *space).
            names: of the images.
            flip: `_flip` where the images are mirrored.

        Raises:
            ModelError: a latent is not finite, or has no place in the type.
        """
        if self.value == "indices":
            assert encoded.indices is not None
            assert self.width is not None
            indices, width = encoded.indices.to("cpu", torch.int64), self.width  # (b, q, *space)
            return [Stored({INDICES + flip: pack(each, width)}, tuple(each.shape)) for each in indices]
        parts = {LATENTS + flip + part: numbers for part, numbers in self._numbers(encoded, names, flip).items()}
        return [
            self._rounded({key: part[index] for key, part in parts.items()}, name) for index, name in enumerate(names)
        ]

    def _numbers(self, encoded: Encoded, names: Sequence[str], flip: str) -> dict[str, Tensor]:
        """float32 (b, c, *space) on the host: the latents, and the deviations where these are wanted."""
        latents = encoded.z.to("cpu", torch.float32)
        if encoded.posterior is None or self.value in ("mean", "output"):
            return {"": self._scaled(latents)}
        deviation = torch.exp(0.5 * encoded.posterior.log_variance.to("cpu", torch.float32))
        if self.value == "sample":
            noise = [torch.randn(latents.shape[1:], generator=generator(self.seed, "latent", n + flip)) for n in names]
            return {"": self._scaled(latents + deviation * torch.stack(noise))}
        return {"": self._scaled(latents), STD: self._scaled(deviation, shift=False)}

    def _scaled(self, numbers: Tensor, shift: bool = True) -> Tensor:
        if self.normalization is None:
            return numbers
        return self.normalization.normalized(numbers) if shift else self.normalization.narrowed(numbers)

    def _rounded(self, parts: Row, name: str) -> Stored:
        """One image's tensors in the type that is wanted, and what that costs."""
        tensors: Row = {}
        squares = peak = 0.0
        for key, part in parts.items():
            if not bool(part.isfinite().all()):
                raise ModelError(f"gives latents of {name} that are not finite")
            rounded = narrow(part, self.dtype)
            tensors |= {key + suffix: tensor for suffix, tensor in rounded.items()}
            away = (widen(rounded, "") - part).double().abs() if self.dtype != torch.float32 else torch.zeros(1)
            if not bool(away.isfinite().all()):
                hint = "use --dtype bf16 or fp32"
                raise UsageError(
                    f"{NAMES[self.dtype]} has no room for the latents of {name}", where="--dtype", hint=hint
                )
            squares, peak = squares + away.square().sum().item(), max(peak, away.max().item())
        numbers = sum(part.numel() for part in parts.values())
        return Stored(tensors, tuple(next(iter(parts.values())).shape), squares, peak, numbers)


def narrow(part: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
    """float32 (c, *space) in another type, by the ending of the name that the tensor gets.

    For int8 every channel has a scale and an offset, (c,) each: its least number is -128, its greatest 127.
    """
    if dtype != torch.int8:
        return {"": part.to(dtype).contiguous()}
    rows = part.flatten(1)  # (c, positions)
    low, high = rows.amin(1), rows.amax(1)
    scale = (high - low) / LEVELS
    offset = low + 128 * scale
    levels = (rows - offset[:, None]) / torch.where(scale > 0, scale, 1)[:, None]
    return {"": levels.round().clamp(-128, 127).to(dtype).view(part.shape), SCALE: scale, OFFSET: offset}


def widen(tensors: Mapping[str, Tensor], key: str) -> Tensor:
    """The float32 numbers of a tensor (..., c, *space) that `narrow` made, of one image or of many."""
    part = tensors[key]
    if part.dtype != torch.int8:
        return part.float()
    scale, offset = (tensors[key + each] for each in (SCALE, OFFSET))
    axes = (..., *(None for _ in range(part.dim() - scale.dim())))
    return part.float() * scale[axes] + offset[axes]
