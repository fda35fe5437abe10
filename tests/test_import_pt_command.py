"""`flexvae import-pt`: plain tensors come through, nothing else does, and every failure is one message."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from flexvae_cli.engine.pickles import import_pickles
from flexvae_cli.errors import DISK_FULL, ModelError

REFUSED = "is no file of plain tensors made by torch.save: it holds other objects, or is damaged"


class Evil:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self):
        return os.mkdir, (str(self.sentinel),)


def test_files_become_one(flexvae, tmp_path):
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    torch.save(OrderedDict((f"features.{k}", v) for k, v in net.state_dict().items()), tmp_path / "a.pth")
    heads = {
        "lin0.model.1.weight": torch.nn.Parameter(torch.rand(1, 4, 1, 1)).half(),
        "classifier.0.bias": torch.ones(2),
    }
    torch.save(heads, tmp_path / "b.pth", _use_new_zipfile_serialization=False)
    done = flexvae("import-pt", tmp_path / "a.pth", tmp_path / "b.pth", tmp_path / "o.safetensors", "--drop", "class*")
    assert done.exit_code == 0, done.stderr
    assert "o.safetensors: 8 tensors" in done.stdout
    assert "left out: classifier.0.bias" in done.stderr
    found = load_file(tmp_path / "o.safetensors")
    assert torch.equal(found["features.0.weight"], net[0].weight)
    assert found["features.1.num_batches_tracked"].dtype == torch.int64
    assert found["lin0.model.1.weight"].dtype == torch.float16
    assert len(found) == 8
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_nested_checkpoints_are_called_by_the_way_to_their_tensors(flexvae, tmp_path):
    shared = torch.arange(6.0).reshape(2, 3)
    content = {"state_dict": {"w": shared.t(), "again": shared}, "epoch": 3, "list": [torch.ones(1), "x"]}
    torch.save(content, tmp_path / "a.pt")
    done = flexvae("import-pt", tmp_path / "a.pt", tmp_path / "o.safetensors", "--json")
    told = json.loads(done.stdout)
    assert told["tensors"] == {"state_dict.w": [3, 2], "state_dict.again": [2, 3], "list.0": [1]}
    assert told["left_out"] == ["epoch", "list.1"]
    assert torch.equal(load_file(tmp_path / "o.safetensors")["state_dict.w"], shared.t())


def broken_files(folder: Path, sentinel: Path):
    """Name -> a file that is not plain tensors."""
    good = io.BytesIO()
    torch.save({"w": torch.ones(1000)}, good)
    legacy = io.BytesIO()
    torch.save({"w": torch.ones(1000)}, legacy, _use_new_zipfile_serialization=False)
    evil, module = io.BytesIO(), io.BytesIO()
    torch.save({"w": torch.ones(1), "x": Evil(sentinel)}, evil)
    torch.save(torch.nn.Linear(2, 2), module)
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("a.txt", "hello")
    script = io.BytesIO()
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), script)
    return {
        "empty": b"",
        "text": b"<html>404</html>",
        "half": good.getvalue()[:800],
        "garbled": good.getvalue()[:200] + bytes(100) + good.getvalue()[300:],
        "half legacy": legacy.getvalue()[:300],
        "bare pickle": pickle.dumps({"w": 1.0, "e": Evil(sentinel)}, protocol=2),
        "protocol 0": pickle.dumps(Evil(sentinel), protocol=0),
        "evil": evil.getvalue(),
        "module": module.getvalue(),
        "zip": zipped.getvalue(),
        "script": script.getvalue(),
        "tar": b"storages" + bytes(2000),
    }


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_nothing_but_plain_tensors_is_read(flexvae, tmp_path, monkeypatch):
    """Not even where the environment asks torch to read everything."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    sentinel = tmp_path / "sentinel"
    for name, content in broken_files(tmp_path, sentinel).items():
        path = tmp_path / f"{name}.pth"
        path.write_bytes(content)
        done = flexvae("import-pt", path, tmp_path / "o.safetensors")
        assert done.exit_code == 4, name
        assert f"error: {path}: {REFUSED}" in done.stderr, name
        assert "weights_only" not in done.stderr
        assert done.stderr.count("\n") == 2  # the error and its hint
        assert not (tmp_path / "o.safetensors").exists()
    assert not sentinel.exists()
    torch.load(tmp_path / "evil.pth", weights_only=False)
    assert sentinel.exists()  # it would have been run


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ({"epoch": 3}, "holds no tensors"),
        (torch.zeros(2, dtype=torch.complex64), "cannot be kept in a safetensors file"),
        ({"w": torch.eye(2).to_sparse()}, "cannot be kept in a safetensors file"),
        ({"w": torch.empty(2, device="meta")}, "the tensor 'w' has no values"),
        ({"a.b": torch.ones(1), "a": {"b": torch.ones(1)}}, "has a tensor 'a.b', and so has"),
    ],
)
def test_tensors_that_cannot_be_kept(flexvae, tmp_path, content, what):
    torch.save(content, tmp_path / "a.pth")
    done = flexvae("import-pt", tmp_path / "a.pth", tmp_path / "o.safetensors")
    assert done.exit_code == 4
    assert what in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]


def test_two_files_with_a_tensor_of_one_name(flexvae, tmp_path):
    for name in ("a.pth", "b.pth"):
        torch.save({"w": torch.ones(1)}, tmp_path / name)
    done = flexvae("import-pt", tmp_path / "a.pth", tmp_path / "b.pth", tmp_path / "o.safetensors")
    assert done.exit_code == 4
    assert f"{tmp_path / 'b.pth'}: has a tensor 'w', and so has {tmp_path / 'a.pth'}" in done.stderr


def test_containers_that_hold_themselves(tmp_path):
    content: dict = {"w": torch.ones(1)}
    content["again"] = content
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(ModelError, match="nests more than 16 containers"):
        import_pickles([tmp_path / "a.pth"], tmp_path / "o.safetensors")


def test_few_bytes_that_claim_to_be_a_giant_are_not_written(flexvae, tmp_path):
    torch.save({"w": torch.ones(1).expand(1 << 50)}, tmp_path / "a.pth")
    done = flexvae("import-pt", tmp_path / "a.pth", tmp_path / "o.safetensors")
    assert done.exit_code == 5
    assert "no space left" in done.stderr
    assert DISK_FULL  # the class of error that ends so
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]


def test_the_files_are_checked_first(flexvae, tmp_path):
    torch.save({"w": torch.ones(1)}, tmp_path / "a.pth")
    before = (tmp_path / "a.pth").read_bytes()
    for arguments, code, what in [
        (["a.pth", "gone.pth", "o.safetensors"], 4, "gone.pth: no such file"),
        (["a.pth", "a.pth"], 2, "a.pth: the last file is the one to write, and is called .safetensors"),
        (["o.safetensors"], 2, "import-pt wants files to read and the file to write"),
        ([".", "o.safetensors"], 4, "is not a regular file"),
    ]:
        done = flexvae("import-pt", *(tmp_path / argument for argument in arguments))
        assert (done.exit_code, what in done.stderr) == (code, True), done.stderr
    (tmp_path / "there.safetensors").write_text("mine")
    done = flexvae("import-pt", tmp_path / "a.pth", tmp_path / "there.safetensors")
    assert (done.exit_code, "is there already" in done.stderr) == (2, True)
    assert (tmp_path / "there.safetensors").read_text() == "mine"
    assert (tmp_path / "a.pth").read_bytes() == before
