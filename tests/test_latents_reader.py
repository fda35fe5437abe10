"""Latents of one autoencoder as the data of another: what is drawn, what comes out, and what is refused."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from flexvae_cli import LatentDataset, plugins
from flexvae_cli.api.readers import BadFile
from flexvae_cli.config.settings import DataTable
from flexvae_cli.engine.data.choosing import choose, made, samples_of
from flexvae_cli.engine.data.readers.latents import Latents
from flexvae_cli.engine.latents import dataset
from flexvae_cli.engine.source import Source, open_source
from flexvae_cli.errors import DataError, ModelError

Encode = Callable[..., Path]


@pytest.fixture
def encode(flexvae: Any, tiny_model: Path, photos: Path, tmp_path: Path) -> Encode:
    def run(*options: object, model: Path = tiny_model, name: str = "latents") -> Path:
        done = flexvae("encode", model, photos, tmp_path / name, "--workers", 0, *options)
        assert done.exit_code == 0, done.stderr
        return tmp_path / name

    return run


def opened(folder: Path, shape: str = "2x3x3", seed: int = 0, **more: Any) -> Source:
    table = {"source": str(folder), "input": shape, "reader": "latents", "crop": "center", "workers": 0, **more}
    return open_source(DataTable.model_validate(table), seed)


def centre(z: torch.Tensor, size: int = 3) -> torch.Tensor:
    top, left = ((n - size) // 2 for n in z.shape[1:])
    return z[:, top : top + size, left : left + size]


def means(folder: Path, **how: Any) -> dict[str, torch.Tensor]:
    latents = LatentDataset(folder, sample=False, flips=False, **how)
    return {f"{name}.safetensors": latents[i].z for i, name in enumerate(latents.names)}


@pytest.mark.parametrize("options", [(), ("--latents", "normalized"), ("--dtype", "int8", "--format", "wds")])
@pytest.mark.parametrize("scaling", ["normalized", "raw"])
def test_a_sample_is_drawn_anew_in_every_epoch_and_validation_sees_means(
    options: tuple[str, ...], scaling: str, encode: Encode
) -> None:
    folder = encode(*options)
    wanted = means(folder, scaling=scaling)
    source, same = opened(folder, scaling=scaling), opened(folder, scaling=scaling)
    other = opened(folder, seed=1, scaling=scaling)
    assert source.validation is not None
    assert source.held_out + len(source.training) == 5
    for index, item in enumerate(source.validation.items):
        torch.testing.assert_close(source.validation[index].x, centre(wanted[item.name]))
    latents = LatentDataset(folder, scaling=scaling)
    names = [f"{name}.safetensors" for name in latents.names]
    for index, item in enumerate(source.training.items):
        mean, deviation = latents.moments(names.index(item.name))
        assert deviation is not None
        drawn = torch.stack([source.training[epoch, index].x for epoch in range(200)])
        again = torch.stack([same.training[epoch, index].x for epoch in range(200)])
        assert torch.equal(drawn, again)
        assert not torch.equal(drawn[0], other.training[0, index].x)
        unit = (drawn - centre(mean)) / centre(deviation)  # (200, 2, 3, 3), and so within 6 deviations of what is said:
        assert abs(float(unit.mean())) < 6 / 3600**0.5
        assert abs(float(unit.std()) - 1) < 6 / 7200**0.5
    if scaling == "normalized":
        raw = LatentDataset(folder, scaling="raw").moments(0)[1]
        normalized = LatentDataset(folder, scaling="normalized").moments(0)[1]
        assert raw is not None
        assert normalized is not None
        torch.testing.assert_close(normalized * torch.tensor([2.0, 0.5])[:, None, None], raw)


def test_means_are_given_as_they_are_never_mirrored_and_never_clipped(encode: Encode, tmp_path: Path) -> None:
    folder = encode("--posterior", "mean", "--latents", "raw", "--flips")
    wanted = means(folder)
    assert max(float(z.abs().max()) for z in wanted.values()) > 1
    for source in (opened(folder, scaling="raw"), opened(encode(name="moments"), scaling="raw", draw=False)):
        for index, item in enumerate(source.training.items):
            for epoch in range(6):
                torch.testing.assert_close(source.training[epoch, index].x, centre(wanted[item.name]))


def test_a_second_autoencoder_goes_through_every_command(encode: Encode, flexvae: Any, tmp_path: Path) -> None:
    folder = encode()
    (tmp_path / "encoder.json").write_text('["C2d_2_8_3_1_1", "SiLU", "C2d_8_2_1"]')
    (tmp_path / "decoder.json").write_text('["C2d_1_8_3_1_1", "SiLU", "C2d_8_2_3_1_1"]')
    (tmp_path / "c.toml").write_text(
        f'[model]\nencoder = "encoder.json"\ndecoder = "decoder.json"\n'
        f'[data]\nsource = "{folder}"\ninput = "2x3x3"\nreader = "latents"\nworkers = 1\n'
        '[train]\nrun_dir = "run"\nmax_steps = 3\nbatch_size = 2\npreview_every = 3\ndevice = "cpu"\n'
    )

    def succeeds(*arguments: object) -> Any:
        done = flexvae(*arguments)
        assert done.exit_code == 0, (arguments, done.stderr)
        return done

    succeeds("train", "--config", tmp_path / "c.toml")
    run = tmp_path / "run"
    recorded = json.loads(next(run.rglob("model.json")).read_text())["preprocessing"]
    assert (recorded["reader"], recorded["parameters"]["scaling"]) == ("latents", "normalized")
    succeeds("infer", run, folder, tmp_path / "out", "--workers", 0)
    wanted = means(folder, scaling="normalized")
    files = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.safetensors"))
    assert files == sorted(wanted)
    for name in files:
        with safe_open(tmp_path / "out" / name, "pt") as file:
            about = json.loads(file.metadata()["flexvae"])
            assert file.get_tensor("latents").shape == wanted[name].shape
        assert (about["scaling"], about["statistics"]) == ("normalized", {"mean": [0.5, -0.5], "std": [2.0, 0.5]})
        assert about["weights_hash"] == LatentDataset(folder).weights_hash
    succeeds("encode", run, folder, tmp_path / "second", "--workers", 0)
    succeeds("decode", run, tmp_path / "second", tmp_path / "decoded")
    for name in files:
        with safe_open(tmp_path / "out" / name, "pt") as one, safe_open(tmp_path / "decoded" / name, "pt") as other:
            assert torch.equal(one.get_tensor("latents"), other.get_tensor("latents"))
    succeeds("sample", run, tmp_path / "samples", "-n", 2, "--size", "4x5")
    with safe_open(tmp_path / "samples/sample-000.safetensors", "pt") as file:
        assert file.get_tensor("latents").shape == (2, 4, 5)
    succeeds("eval", run, folder, "--workers", 0, "--json", "--output", tmp_path / "e")
    assert flexvae("train", "--config", tmp_path / "c.toml", "--set", "data.flip=true").exit_code == 2


def test_a_folder_that_is_not_what_its_manifest_says_is_refused(
    encode: Encode, flexvae: Any, photos: Path, tmp_path: Path
) -> None:
    folder = encode()
    (shard, *_) = sorted(folder.rglob("*.safetensors"))
    manifest, data = (folder / "manifest.json").read_bytes(), shard.read_bytes()
    opened(folder)
    shard.write_bytes(data[:-4] + b"\0\0\x80?")
    (folder / "manifest.json").write_bytes(manifest)  # whose time changes, or what was verified would be believed
    with pytest.raises(ModelError, match="damaged or replaced"):
        opened(folder)
    shard.write_bytes(data)
    (folder / "manifest.json").write_bytes(manifest.replace(b'"label": 0', b'"label": 1'))
    with pytest.raises(ModelError, match="seal"):
        opened(folder)
    (folder / "manifest.json").write_text('{"images": 5}')
    (tmp_path / "e.json").write_text('["C2d_2_2_1"]')
    (tmp_path / "d.json").write_text('["C2d_1_2_1"]')
    (tmp_path / "c.toml").write_text(
        f'[model]\nencoder = "e.json"\ndecoder = "d.json"\n[train]\nrun_dir = "run"\nmax_steps = 1\ndevice = "cpu"\n'
        f'[data]\nsource = "{folder}"\ninput = "2x3x3"\nreader = "latents"\n'
    )
    assert flexvae("train", "--config", tmp_path / "c.toml").exit_code == 4
    done = flexvae("train", "--config", tmp_path / "c.toml", "--set", f"data.source={photos}")
    assert done.exit_code == 3
    assert "that the reader takes" in done.stderr


def test_a_manifest_is_read_once_however_many_look_at_its_latents(
    encode: Encode, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, read, verified = encode(), list[Path](), list[str]()
    manifest, verify = dataset.read_manifest, dataset.verified_file

    def counted(path: Path) -> Any:
        read.append(path)
        return manifest(path)

    def looked_through(path: Path, file: Any, *how: Any) -> Any:
        verified.append(file.path)
        return verify(path, file, *how)

    monkeypatch.setattr(dataset, "read_manifest", counted)
    monkeypatch.setattr(dataset, "verified_file", looked_through)
    source = opened(folder)
    assert (opened(folder).training[0, 0].x == source.training[0, 0].x).all()
    assert read == [folder]
    assert len(verified) == len(set(verified)) > 0


def test_a_manifest_of_something_else_is_nothing_to_read(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(DataError, match=r"nothing to read in (.|\n)*is of format None"):
        choose(plugins.installed().registry, str(tmp_path), (3, 8, 8), "data.source")
    with pytest.raises(ModelError, match="is of format None"):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("names", "what"), [(["a", "b", "a"], "two samples 'a'"), (["a", "\ud800"], r"'\\ud800', as no file can be called")]
)
def test_samples_that_a_reader_calls_alike_or_as_no_file_can_be_are_refused(names: list[str], what: str) -> None:
    class Many(Latents):
        def listed(self, source: Path) -> list[tuple[str, Path]]:
            return [(name, source / str(number)) for number, name in enumerate(names)]

    with pytest.raises(DataError, match=what):
        samples_of(Many("raw", draw=False), "there", "data.source")


def test_indices_and_other_paths_are_no_samples(
    encode: Encode, make_model: Callable[..., Path], tmp_path: Path
) -> None:
    reader = made(plugins.installed().registry, "latents", {}).reader
    pickle.loads(pickle.dumps(reader))
    folder = encode()
    for path in (tmp_path / "x.safetensors", folder / "manifest.json" / "99", folder / "manifest.json" / "x"):
        with pytest.raises(BadFile):
            reader.read(path, (2, 3, 3))
    with pytest.raises(BadFile, match="wanted are 4 channels"):
        reader.header(folder / "manifest.json" / "0", (4, 3, 3))
    assert reader.listed(tmp_path) == []
    data = reader.write(np.zeros((2, 3, 3), np.float32), {}, ".safetensors")
    (tmp_path / "written.safetensors").write_bytes(data)
    with safe_open(tmp_path / "written.safetensors", "np") as file:
        assert json.loads(file.metadata()["flexvae"]) == {"scaling": "normalized"}
    layers = ["C2d_3_8_3_2_1", "SiLU", "C2d_8_2_3_2_1"]
    quantized = encode(model=make_model(tmp_path / "q", encoder=layers, bottleneck="FSQ_5.5"), name="indices")
    with pytest.raises(ModelError, match="indices of a quantizer"):
        reader.listed(quantized)
