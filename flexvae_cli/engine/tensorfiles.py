"""Tensors on disk: safetensors in and out, and never a pickle."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flexvae_cli.engine.files import Digest, write_new
from flexvae_cli.engine.reading import reading, regular
from flexvae_cli.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor

PICKLE_SUFFIXES = {".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle"}
_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "U16": "uint16",
    "U32": "uint32",
    "U64": "uint64",
    "BOOL": "bool",
}


def tensor_bytes(tensors: dict[str, Tensor]) -> int:
    """The bytes that the values of the tensors take."""
    return sum(t.numel() * t.element_size() for t in tensors.values())


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> Digest:
    """Writes tensors of any device as a new safetensors file, durably, with one tensor at a time on the host.

    (`safetensors.torch.save_file` wants all of them on the host and none shared, ignores the umask and is not fsynced.)

    Raises:
        ValueError: a tensor has a type that the format has no name for.
    """
    return write_new(path, _safetensors_chunks(tensors))


def digest_of_tensors(tensors: dict[str, Tensor]) -> str:
    """The sha256 of the file that `write_tensors` would write."""
    sha256 = hashlib.sha256()
    for chunk in _safetensors_chunks(tensors):
        sha256.update(chunk)
    return sha256.hexdigest()


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the host, mapped into memory rather than read, unless its name is no UTF-8.

    Raises:
        ModelError: it is not a safetensors file, or a damaged one.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load, load_file

    refuse_pickle(path)
    with reading(path):
        try:
            named = str(path).isascii() or os.fsencode(path) == str(path).encode("utf-8", "replace")
            return load_file(regular(path)) if named else load(regular(path).read_bytes())
        except SafetensorError as error:
            raise ModelError(f"is not a readable safetensors file: {error}", where=str(path)) from error


def refuse_pickle(path: Path) -> None:
    """Names a pickle as what it is; nothing in it is ever run.

    Raises:
        ModelError: the file is a pickle or a zip archive, as `torch.save` writes them, or is named like one.
    """
    if not path.is_file():
        return
    with reading(path), path.open("rb") as file:
        start = file.read(9)
    zipped = start.startswith(b"PK\x03\x04")
    # a safetensors file may begin with the same two bytes, but its header opens with a brace after eight
    pickled = start[:1] == b"\x80" and start[1:2] in {b"\x02", b"\x03", b"\x04", b"\x05"} and start[8:] != b"{"
    if zipped or pickled or path.suffix.lower() in PICKLE_SUFFIXES:
        raise ModelError("pickle refused: it can run any program; FlexVAE reads safetensors only", where=str(path))


def _safetensors_chunks(tensors: dict[str, Tensor]) -> Iterator[bytes | memoryview]:
    import torch

    dtypes = {getattr(torch, torch_name): name for name, torch_name in _DTYPES.items()}
    # 8 bytes of header length, the header (JSON, padded so that the data is aligned), then the data without gaps
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in ordered:
        if tensor.dtype not in dtypes or tensor.layout is not torch.strided or name in header:
            raise ValueError(f"tensor {name!r} of {tensor.dtype} cannot be kept in a safetensors file")
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": dtypes[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for _, tensor in ordered:
        yield tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
