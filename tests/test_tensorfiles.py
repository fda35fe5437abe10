"""Safetensors in and out."""

from __future__ import annotations

import json
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from flexvae_cli.engine import tensorfiles
from flexvae_cli.errors import Exit, ModelError


def awkward_tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    bits = torch.randint(0, 256, (24,), dtype=torch.uint8)
    tensors = {
        f"plain.{name}": bits.view(getattr(torch, name)) for name in tensorfiles._DTYPES.values() if name != "bool"
    }
    base = torch.randn(4, 6)
    return tensors | {
        "bool": bits > 100,
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 3),
        "transposed": base.t(),
        "shared": base[1:],
        "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "parameter": torch.nn.Parameter(base),
        "näme \n": torch.ones(1),
    }


def test_tensors_come_back_bit_for_bit(tmp_path):
    tensors = awkward_tensors()
    tensorfiles.write_tensors(tmp_path / "a.safetensors", tensors)
    for read in (tensorfiles.read_tensors, load_file):
        again = read(tmp_path / "a.safetensors")
        assert again.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert again[name].dtype == tensor.dtype
            assert again[name].shape == tensor.shape
            assert again[name].untyped_storage().nbytes() >= tensor.nbytes
            expected = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
            assert torch.equal(again[name].reshape(-1).view(torch.uint8), expected), name


def test_the_same_tensors_make_the_same_file_in_any_order(tmp_path):
    tensors = awkward_tensors()
    first = tensorfiles.write_tensors(tmp_path / "a", tensors)
    assert tensorfiles.write_tensors(tmp_path / "b", dict(reversed(tensors.items()))) == first
    assert tensorfiles.tensor_bytes(tensors) < first.bytes


@pytest.mark.parametrize("tensor", [torch.zeros(2, dtype=torch.complex64), torch.eye(2).to_sparse()])
def test_write_tensors_refuses_what_the_format_cannot_hold(tmp_path, tensor):
    with pytest.raises(ValueError, match="'odd'"):
        tensorfiles.write_tensors(tmp_path / "a", {"odd": tensor})


def test_a_safetensors_file_that_begins_like_a_pickle_is_read(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"w": torch.ones(2)}, path)
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + length].ljust(0x280)
    path.write_bytes((0x280).to_bytes(8, "little") + header + content[8 + length :])
    assert path.read_bytes()[:2] == pickle.PROTO + b"\x02"
    assert torch.equal(tensorfiles.read_tensors(path)["w"], torch.ones(2))


def hostile_headers():
    def file(header: dict, data: bytes = b"\0" * 8) -> bytes:
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + data

    yield b""
    yield b"\xff" * 8
    yield (1 << 62).to_bytes(8, "little") + b"{}"
    yield file({"w": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}})
    yield file({"w": {"dtype": "F32", "shape": [1 << 62, 4], "data_offsets": [0, 8]}})
    yield file({"w": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}})
    yield file({"w": {"dtype": "F99", "shape": [2], "data_offsets": [0, 8]}})
    yield file({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, b"\0" * 9)


@pytest.mark.parametrize("content", list(hostile_headers()))
def test_read_tensors_refuses_hostile_headers(tmp_path, content):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelError, match="not a readable safetensors file") as caught:
        tensorfiles.read_tensors(path)
    assert caught.value.code == Exit.MODEL
