"""The layouts that latents are written in: what a file of each holds, and how it is read back."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from flexvae_cli.engine.latents.values import Row
from flexvae_cli.engine.reading import reading, regular
from flexvae_cli.engine.tensorfiles import read_tensors
from flexvae_cli.errors import ModelError

LABELS = "labels"
MOST_HEADER = 1 << 16  # bytes of the header of a .npy file
ARRAY_TYPES = ("float32", "float16", "int8", "uint8")  # of latents that numpy has a name for


@dataclass(frozen=True, slots=True)
class Kept:
    """One image's latent on its way to a file.

    Attributes:
        name, size, label: of the image.
        tensors: by name, without an axis for the batch.
    """

    name: str
    size: tuple[int, ...]
    label: int
    tensors: Row


@dataclass(frozen=True, slots=True)
class Layout:
    """How latents lie in files.

    Attributes:
        many: whether a file holds many of them, in a folder for each shape, or the one of an image, named after it.
        suffix: of the files.
        path: of the n-th file of a series, below its folder.
        pack: latents, and what each file says of itself -> the content of a file.
        unpack: a file and the names of its tensors, in order -> these, with an axis for the images.
        types: of numbers that it has room for; empty where for all.
    """

    many: bool
    suffix: str
    path: str
    pack: Callable[[Sequence[Kept], Mapping[str, Any]], bytes]
    unpack: Callable[[Path, Sequence[str]], Row]
    types: tuple[str, ...] = ()


def _pack_shard(latents: Sequence[Kept], about: Mapping[str, Any]) -> bytes:
    tensors = {key: torch.stack([each.tensors[key] for each in latents]) for key in latents[0].tensors}
    tensors[LABELS] = torch.tensor([each.label for each in latents], dtype=torch.int64)
    return save(tensors, _metadata(about))


def _unpack_shard(path: Path, keys: Sequence[str]) -> Row:
    found = read_tensors(path)
    return {key: found[key] for key in (*keys, LABELS) if key in found}


def _pack_file(latents: Sequence[Kept], about: Mapping[str, Any]) -> bytes:
    (one,) = latents
    return save(one.tensors, _metadata({**about, "size": one.size}))


def _unpack_file(path: Path, keys: Sequence[str]) -> Row:
    found = read_tensors(path)
    return {key: found[key][None] for key in keys if key in found}


def _metadata(about: Mapping[str, Any]) -> dict[str, str]:
    # one key: safetensors writes several in an order that changes from run to run
    return {"flexvae": json.dumps(dict(about))}


def _pack_array(latents: Sequence[Kept], about: Mapping[str, Any]) -> bytes:  # noqa: ARG001 - an array says nothing
    (one,) = latents
    return _array_bytes(torch.stack(list(one.tensors.values())))


def _unpack_array(path: Path, keys: Sequence[str]) -> Row:
    with reading(path):
        stacked = _array(regular(path).read_bytes(), path)
    if len(stacked) != len(keys):
        raise ModelError(f"holds {len(stacked)} arrays, not {' and '.join(keys)}", where=str(path))
    return {key: each[None] for key, each in zip(keys, stacked, strict=True)}


def _pack_tar(latents: Sequence[Kept], about: Mapping[str, Any]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for number, each in enumerate(latents):
            members = {f"{key}.npy": _array_bytes(tensor) for key, tensor in each.tensors.items()}
            members["cls"] = str(each.label).encode()
            members["json"] = json.dumps({**about, "name": each.name, "size": each.size}).encode()
            for extension, data in members.items():
                info = tarfile.TarInfo(f"{number:08d}.{extension}")  # owner and time are 0: equal input, equal bytes
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def _unpack_tar(path: Path, keys: Sequence[str]) -> Row:
    """Nothing is extracted: members are looked up by name, and only regular ones are read, into memory."""
    rows: dict[str, dict[int, Tensor]] = {key: {} for key in (*keys, LABELS)}
    with reading(path), regular(path).open("rb") as file:
        there = path.stat().st_size
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for member in tar:
                    if member.issparse() or member.offset_data + member.size > there:
                        raise ModelError(f"claims more than is there: '{member.name}'", where=str(path))
                    number, _, extension = member.name.partition(".")
                    key = LABELS if extension == "cls" else extension.removesuffix(".npy")
                    content = tar.extractfile(member) if member.isreg() and key in rows and number.isdigit() else None
                    if content is not None:
                        data = content.read()
                        value = torch.tensor(int(data)) if key == LABELS else _array(data, path)
                        rows[key][int(number)] = value
        except (tarfile.TarError, ValueError, EOFError, OverflowError, RuntimeError) as error:  # the last two: labels
            raise ModelError(f"is not a readable tar file: {error}", where=str(path)) from error
    try:
        return {key: torch.stack([found[n] for n in range(len(found))]) for key, found in rows.items() if found}
    except (KeyError, RuntimeError) as error:
        raise ModelError("lacks members, or holds latents of several shapes", where=str(path)) from error


def _array_bytes(tensor: Tensor) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(tensor.numpy()), version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def _array(data: bytes, path: Path) -> Tensor:
    """An array of numbers; the memory that it takes is that of the file, whatever its header claims."""
    try:
        file = io.BytesIO(data)
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError("another version of the format")
        shape, by_column, dtype = np.lib.format.read_array_header_1_0(file, max_header_size=MOST_HEADER)
        if by_column or dtype.name not in ARRAY_TYPES or dtype.byteorder == ">":
            raise ValueError(f"an array of {dtype}, not of {', '.join(ARRAY_TYPES)}")
        return torch.from_numpy(np.frombuffer(data, dtype, offset=file.tell()).reshape(shape).copy())
    except (ValueError, OverflowError, EOFError) as error:
        raise ModelError(f"is not a readable .npy file: {error}", where=str(path)) from error


LAYOUTS = {
    "shards": Layout(True, ".safetensors", "latents_rank00_shard{:03d}.safetensors", _pack_shard, _unpack_shard),
    "files": Layout(False, ".safetensors", "", _pack_file, _unpack_file),
    "npy": Layout(False, ".npy", "", _pack_array, _unpack_array, ("float32", "float16")),
    "wds": Layout(True, ".tar", "shard-{:06d}.tar", _pack_tar, _unpack_tar, ("float32", "float16", "int8")),
}
"""Every layout by its name."""
