"""No file that FlexVAE reads can run a program."""

from __future__ import annotations

import hashlib
import os
import pickle
import shutil
import zipfile
from pathlib import Path

import pytest
import torch

from flexvae_cli.engine.checkpoint import (
    newest_checkpoint,
    read_checkpoint,
    resume_checkpoint,
    save_checkpoint,
)
from flexvae_cli.engine.modelfiles import export_bundle, find_model
from flexvae_cli.engine.reading import digest_of, json_bytes, read_json, seal_of
from flexvae_cli.engine.tensorfiles import read_tensors
from flexvae_cli.errors import Exit, ModelError

MAKERS = ["torch.save", "torch.save, legacy", "protocol 0", "protocol 2", "protocol 4", "protocol 5", "zip"]


class Evil:
    """Unpickling it creates a file."""

    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self):
        return os.system, (f"touch '{self.sentinel}'",)


@pytest.fixture
def sentinel(tmp_path):
    """The file that must not be there at the end."""
    path = tmp_path / "sentinel"
    yield path
    assert not path.exists()


def write_evil(path: Path, maker: str, sentinel: Path) -> None:
    content = {"weight": torch.ones(2), "evil": Evil(sentinel)}
    if maker.startswith("torch.save"):
        torch.save(content, path, _use_new_zipfile_serialization="legacy" not in maker)
    elif maker == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(Evil(sentinel)))
    else:
        path.write_bytes(pickle.dumps(Evil(sentinel), protocol=int(maker[-1])))


def save(run: Path, step: int) -> Path:
    tensors = {"weight": torch.full((2,), float(step))}
    return save_checkpoint(run, step, weights=tensors, model={"encoder": []}, training=tensors, state={})


def make_consistent(checkpoint: Path) -> None:
    """Writes digests and seals anew, as an attacker would."""
    model, state = read_json(checkpoint / "model.json"), read_json(checkpoint / "state.json")
    model["weights"] = hashlib.sha256((checkpoint / "model.safetensors").read_bytes()).hexdigest()
    for name, value in {"model.json": model, "state.json": state}.items():
        if name == "state.json":
            value["files"] = {other: digest_of(checkpoint / other)._asdict() for other in value["files"]}
        del value["seal"]
        (checkpoint / name).write_bytes(json_bytes({**value, "seal": seal_of(value)}))


def test_the_evil_pickles_are_evil(tmp_path):
    for number, maker in enumerate(MAKERS):
        sentinel, path = tmp_path / f"sentinel{number}", tmp_path / f"evil{number}"
        write_evil(path, maker, sentinel)
        if maker == "zip":
            pickle.loads(zipfile.ZipFile(path).read("archive/data.pkl"))
        elif maker.startswith("torch.save"):
            torch.load(path, weights_only=False)
        else:
            pickle.loads(path.read_bytes())
        assert sentinel.exists()


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("name", ["model.pt", "model.ckpt", "model.bin", "model.safetensors", "model.json", "model"])
def test_a_pickle_is_no_model_under_any_name(tmp_path, sentinel, maker, name):
    path = tmp_path / "place" / name
    path.parent.mkdir()
    write_evil(path, maker, sentinel)
    for read in (find_model, read_tensors, read_json, lambda p: export_bundle(p, tmp_path / "out")):
        for place in (path, path.parent):
            with pytest.raises(ModelError) as caught:
                read(place)
            assert caught.value.code == Exit.MODEL
            assert "weights_only" not in str(caught.value)
    if maker != "protocol 0" or path.suffix in {".pt", ".ckpt", ".bin"}:
        with pytest.raises(ModelError, match=r"pickle refused.*FlexVAE reads safetensors"):
            find_model(path)


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("name", ["model.safetensors", "training.safetensors"])
@pytest.mark.parametrize("consistent", [False, True])
def test_a_pickle_inside_a_checkpoint_is_refused(tmp_path, sentinel, maker, name, consistent):
    save(tmp_path / "run", 1)
    path = save(tmp_path / "run", 2)
    (path / name).unlink()
    write_evil(path / name, maker, sentinel)
    if consistent:
        make_consistent(path)
    if maker == "protocol 0" and consistent:  # it has no mark of its own; it fails as safetensors
        found = read_checkpoint(path)
        with pytest.raises(ModelError, match="not a readable safetensors file"):
            found.weights() if name == "model.safetensors" else found.training()
        return
    with pytest.raises(ModelError, match=r"refused|replaced"):
        read_checkpoint(path)
    newest, problems = newest_checkpoint(tmp_path / "run")
    assert newest is not None
    assert newest.step == 1
    assert name in problems[0].where
    assert find_model(tmp_path / "run").path.name == ("step-00000001" if name == "model.safetensors" else path.name)


def test_pickles_beside_the_files_of_a_checkpoint_are_never_opened(tmp_path, sentinel):
    path = save(tmp_path / "run", 1)
    for name in ("data.pkl", "optimizer.pt", ".metadata", "state.pickle"):
        write_evil(path / name, "protocol 4", sentinel)
        write_evil(tmp_path / "run" / name, "protocol 4", sentinel)
    newest, problems = resume_checkpoint(tmp_path / "run")
    assert newest is not None
    assert problems == []
    newest.weights()
    newest.training()
    export_bundle(tmp_path / "run", tmp_path / "bundle")
    assert sorted(p.name for p in (tmp_path / "bundle").iterdir()) == ["model.json", "model.safetensors"]


def test_links_and_pipes_in_a_bundle_do_no_harm(tmp_path):
    bundle = export_bundle(save(tmp_path / "run", 1), tmp_path / "bundle").path
    for name in ("model.safetensors", "model.json"):
        for make in (os.mkfifo, lambda p: p.symlink_to("/dev/zero"), lambda p: p.symlink_to(p), lambda p: p.mkdir()):
            copy = tmp_path / "copy"
            shutil.copytree(bundle, copy)
            (copy / name).unlink()
            make(copy / name)
            with pytest.raises(ModelError):
                find_model(copy)
            shutil.rmtree(copy)
