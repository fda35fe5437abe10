"""`encode` a second time: what has not changed is kept, whatever else has."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from processes import torchrun

from flexvae_cli import LatentDataset
from flexvae_cli.engine.latents import encoding
from flexvae_cli.engine.latents.journal import held
from flexvae_cli.engine.manifest import read_manifest
from flexvae_cli.errors import Exit, ResourceError

LAYOUTS = ["shards", "files", "npy", "wds"]


def content_of(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def encode(flexvae, tiny_model, photos, tmp_path, monkeypatch):
    """Encode the photographs; returns the folder and the names of those that went through the net."""
    seen: list[str] = []
    real = encoding.Encoder.encode

    def watched(self, samples):
        seen.extend(sample.name for sample in samples)
        return real(self, samples)

    monkeypatch.setattr(encoding.Encoder, "encode", watched)

    def run(*options, name="latents"):
        seen.clear()
        done = flexvae("encode", tiny_model, photos, tmp_path / name, "--workers", 0, "--json", *options)
        assert done.exit_code == 0, done.stderr
        assert flexvae("latents", "verify", tmp_path / name).exit_code == 0
        assert not (tmp_path / name / ".encode").exists()
        return tmp_path / name, list(seen), json.loads(done.stdout)

    return run


def same_as_new(folder: Path, new: Path) -> None:
    """Latents that were kept and those that are all new are the same within rounding, at the same places."""
    assert sorted(content_of(folder)) == sorted(content_of(new))
    one, other = (LatentDataset(each, sample=False, flips=False) for each in (folder, new))
    assert one.names == other.names
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a.z, b.z)
        assert a.label == b.label


@pytest.mark.parametrize("layout", LAYOUTS)
def test_only_what_changed_is_encoded(encode, photos, layout):
    options = ("--format", layout, "--shard-size", 1, "--flips", "--batch-size", 1)  # one by one: to the last bit
    folder, seen, _ = encode(*options)
    assert sorted(seen) == ["a.jpg", "a.png", "b/c.png", "b/d.png", "e/f.bmp"]
    before = content_of(folder)
    _, seen, said = encode(*options)
    assert (seen, said["reused"]) == ([], 5)
    assert content_of(folder) == before
    Image.new("RGB", (50, 37), "red").save(photos / "b/c.png")  # changed
    shutil.copy(photos / "b/d.png", photos / "b/0.png")  # new, and ahead of those that stay
    (photos / "A").mkdir()
    shutil.copy(photos / "e/f.bmp", photos / "A/f.bmp")  # new, and all labels change
    (photos / "a.jpg").unlink()  # gone
    os.utime(photos / "b/d.png", ns=(1, 1))  # touched: the content is the same
    folder, seen, said = encode(*options)
    assert sorted(seen) == ["A/f.bmp", "b/0.png", "b/c.png"]
    assert said["reused"] == 3
    assert content_of(folder) == content_of(encode(*options, name="new")[0])


def test_another_image_of_the_same_name_size_and_time_is_encoded(encode, photos):
    """As archives whose times are all the same bring it, and `cp -p`."""
    folder, _, _ = encode("--batch-size", 1)
    path = photos / "e/f.bmp"
    before = path.stat()
    Image.new("RGB", (12, 20), "red").save(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    _, seen, _ = encode("--batch-size", 1)
    assert seen == ["e/f.bmp"]
    assert content_of(folder) == content_of(encode("--batch-size", 1, name="new")[0])


def test_what_is_damaged_is_encoded_again(encode, photos):
    folder, _, _ = encode("--shard-size", 1)
    before = content_of(folder)
    shard = folder / read_manifest(folder).images[2].file
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    _, seen, _ = encode("--shard-size", 1)
    assert seen == ["b/c.png"]
    assert content_of(folder) == before


def test_an_image_that_cannot_be_read_costs_its_own_latent_alone(encode, photos, tmp_path):
    whole = (photos / "b/c.png").read_bytes()
    (photos / "b/c.png").write_bytes(whole[:-50])
    folder, _, said = encode()
    assert said["bad_files"] == 1
    assert [failure.name for failure in read_manifest(folder).failures] == ["b/c.png"]
    before = content_of(folder)
    assert encode()[1] == []
    assert content_of(folder) == before
    (photos / "b/c.png").write_bytes(whole)
    _, seen, said = encode()
    assert (seen, said["bad_files"], said["reused"]) == (["b/c.png"], 0, 4)
    same_as_new(folder, encode(name="new")[0])


def test_an_update_that_is_killed_is_gone_on_with(encode, flexvae, tiny_model, photos, tmp_path, monkeypatch):
    folder, _, _ = encode("--shard-size", 1)
    shutil.copy(photos / "b/d.png", photos / "b/0.png")
    real = encoding._write

    def stopped(encoder, unit, *rest):
        if unit.number == 2:
            raise KeyboardInterrupt
        return real(encoder, unit, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(encoding, "_write", stopped)
        assert flexvae("encode", tiny_model, photos, folder, "--workers", 0, "--shard-size", 1).exit_code == 130
    assert not (folder / "manifest.json").exists()
    refused = flexvae("decode", tiny_model, folder, tmp_path / "out")
    assert refused.exit_code == Exit.MODEL
    _, seen, said = encode("--shard-size", 1)
    assert (seen, said["reused"]) == ([], 6)
    same_as_new(folder, encode("--shard-size", 1, name="new")[0])


@pytest.mark.parametrize("complete", [True, False])
def test_overwrite_discards_an_encode_complete_or_not(
    encode, flexvae, tiny_model, photos, tmp_path, monkeypatch, complete
):
    folder, _, _ = encode("--format", "npy", "--shard-size", 1)
    if not complete:
        shutil.copy(photos / "b/d.png", photos / "0.png")
        with monkeypatch.context() as patch:
            patch.setattr(encoding.Encoder, "encode", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            again = ("--workers", 0, "--format", "npy", "--shard-size", 1)
            assert flexvae("encode", tiny_model, photos, folder, *again).exit_code == 130
    shards, _, _ = encode("--overwrite")
    assert sorted(content_of(shards)) == sorted(content_of(encode(name="new")[0]))


def test_one_encode_at_a_time_writes_to_a_folder(flexvae, tiny_model, photos, tmp_path):
    with held(tmp_path / "z"):
        refused = flexvae("encode", tiny_model, photos, tmp_path / "z", "--workers", 0)
        assert refused.exit_code == Exit.RESOURCES
        assert "another encode writes to it" in refused.stderr
        with pytest.raises(ResourceError), held(tmp_path / "z"):
            pass
    assert not (tmp_path / "z").exists()
    assert flexvae("encode", tiny_model, photos, tmp_path / "z", "--workers", 0).exit_code == 0


@pytest.mark.timeout(300)
def test_several_processes_write_what_one_writes(encode, tiny_model, photos, tmp_path):
    (photos / "bad.png").write_text("no image")
    folder, _, _ = encode("--shard-size", 1, "--flips")
    options = ("--shard-size", 1, "--flips", "--workers", 0, "--device", "cpu", "--json")
    process = torchrun(tmp_path, "encode", tiny_model, photos, tmp_path / "shared", *options)
    out, said = process.communicate()
    assert process.returncode == 0, said
    assert json.loads(out)["images"] == 5
    assert content_of(tmp_path / "shared") == content_of(folder)


def test_latents_of_another_source_are_not_replaced_by_mistake(flexvae, encode, tiny_model, tmp_path):
    folder, _, _ = encode()
    before = content_of(folder)
    (tmp_path / "others").mkdir()
    Image.new("RGB", (16, 16)).save(tmp_path / "others" / "z.png")
    again = ("encode", tiny_model, tmp_path / "others", folder, "--workers", 0)
    refused = flexvae(*again)
    assert refused.exit_code == Exit.USAGE
    assert "holds latents of 5 other images, such as a.jpg, and of none of these" in refused.stderr
    assert "--overwrite" in refused.stderr
    assert content_of(folder) == before
    assert flexvae(*again, "--overwrite").exit_code == 0
    assert [image.name for image in read_manifest(folder).images] == ["z.png"]


def test_overwrite_keeps_what_is_there_until_there_is_something_instead(flexvae, encode, tiny_model, tmp_path):
    folder, _, _ = encode()
    before = content_of(folder)
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "a.png").write_bytes(b"not an image")
    refused = flexvae("encode", tiny_model, tmp_path / "others", folder, "--workers", 0, "--overwrite")
    assert refused.exit_code == Exit.DATA
    assert content_of(folder) == before
