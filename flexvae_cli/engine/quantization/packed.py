"""Weights as whole numbers of few bits: each slice along the first axis has steps of its own.

A weight is `low + step * code`, with codes from 0 to 2^bits - 1. In a model file the tensor NAME is then three:
`NAME:codes` (packed, see `packing.py`), `NAME:low` and `NAME:step`; the model's description has its bits and its shape.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flexvae_cli.engine.packing import pack, packed_size, unpack
from flexvae_cli.errors import ModelError

LEAST, MOST = 2, 16  # bits
SHORTEST = 5  # numbers of a slice: a shorter one is not worth its `low` and `step`
NARROWED = tuple(1 - 0.05 * n for n in range(13))  # parts of a slice's range that are tried: 1 to 0.4
PARTS = ("codes", "low", "step")


class Packed(NamedTuple):
    """A tensor in few bits.

    Attributes:
        codes: (slices, numbers), int64.
        low, step: (slices, 1), float32.
        shape: of the tensor.
        bits: of a code.
    """

    codes: Tensor
    low: Tensor
    step: Tensor
    shape: tuple[int, ...]
    bits: int

    def value(self) -> Tensor:
        """The tensor that the codes stand for, float32, on the host."""
        return (self.low + self.step * self.codes).reshape(self.shape)


def packable(tensor: Tensor) -> bool:
    """Whether a tensor is a weight that takes less room in few bits: float32, of two axes or more, not tiny slices."""
    return tensor.dtype == torch.float32 and tensor.dim() > 1 and tensor[0].numel() >= SHORTEST


def quantize(tensor: Tensor, bits: int) -> Packed:
    """The codes with the least squared error among narrowed ranges of each slice, on the host: the same everywhere.

    With few bits it pays to cut off the rare extremes for the sake of finer steps.
    """
    rows = tensor.detach().cpu().flatten(1)  # (slices, numbers)
    least, most = rows.amin(1, keepdim=True), rows.amax(1, keepdim=True)
    middle, half, top = (least + most) / 2, (most - least) / 2, 2**bits - 1
    best: tuple[Tensor, Tensor] | None = None
    error = torch.full_like(least, torch.inf)
    for part in NARROWED:
        low = middle - part * half
        step = (2 * part * half / top).clamp(min=torch.finfo(torch.float32).tiny)
        found = (low + step * _codes(rows, low, step, top) - rows).square().sum(1, keepdim=True)
        better = found < error
        error = torch.where(better, found, error)
        best = (low, step) if best is None else (torch.where(better, low, best[0]), torch.where(better, step, best[1]))
    assert best is not None
    return Packed(_codes(rows, *best, top), *best, tuple(tensor.shape), bits)


def _codes(rows: Tensor, low: Tensor, step: Tensor, top: int) -> Tensor:
    return ((rows - low) / step).round().clamp(0, top).long()


def size_of(tensor: Tensor, bits: int) -> int:
    """The bytes that a tensor takes in a file when it is packed."""
    return packed_size(tuple(tensor.shape), bits) + 2 * 4 * tensor.shape[0]


def packed_weights(
    weights: Mapping[str, Tensor], chosen: Mapping[str, int]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a model file, some of them packed, and what its description says of these.

    Args:
        weights: the `state_dict`.
        chosen: the bits of those to pack, by name.
    """
    tensors = {name: tensor for name, tensor in weights.items() if name not in chosen}
    about = {}
    for name, bits in chosen.items():
        packed = quantize(weights[name], bits)
        tensors |= {f"{name}:codes": pack(packed.codes, bits), f"{name}:low": packed.low, f"{name}:step": packed.step}
        about[name] = {"bits": bits, "shape": list(packed.shape)}
    return tensors, about


def unpacked_weights(tensors: Mapping[str, Tensor], about: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """The way back: the `state_dict` of a model file whose description says `about` of its packed tensors.

    Raises:
        ModelError: the two do not fit.
    """
    found = dict(tensors)
    for name, entry in about.items():
        bits, shape = _checked(entry, name, path)
        parts = [found.pop(f"{name}:{part}", None) for part in PARTS]
        slices = (shape[0], 1)
        if not _fits(parts, [(packed_size(shape, bits),), slices, slices], [torch.uint8, torch.float32, torch.float32]):
            raise ModelError(f"has not the codes that {name} is made of", where=str(path))
        codes, low, step = (part for part in parts if part is not None)
        found[name] = Packed(unpack(codes, shape, bits).reshape(shape[0], -1), low, step, shape, bits).value()
    return found


def _checked(entry: Any, name: str, path: Path) -> tuple[int, tuple[int, ...]]:
    """Bits and shape of a packed tensor, from a file that may say anything."""
    bits, shape = (entry.get("bits"), entry.get("shape")) if isinstance(entry, dict) else (None, None)
    sound = type(bits) is int and LEAST <= bits <= MOST and isinstance(shape, list) and len(shape) > 1
    if not sound or not all(type(n) is int and n > 0 for n in shape or ()):
        raise ModelError(f"says of {name} neither bits nor shape that weights can have", where=str(path))
    assert isinstance(bits, int)
    assert isinstance(shape, list)
    return bits, tuple(shape)


def _fits(parts: Iterable[Tensor | None], shapes: Iterable[tuple[int, ...]], types: Iterable[torch.dtype]) -> bool:
    return all(
        part is not None and tuple(part.shape) == shape and part.dtype == dtype
        for part, shape, dtype in zip(parts, shapes, types, strict=True)
    )
