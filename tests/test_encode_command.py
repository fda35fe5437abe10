"""`encode` and `decode` together."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from flexvae_cli import load_model
from flexvae_cli.engine.reading import seal_of
from flexvae_cli.errors import Exit


def content_of(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def manifest_in(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text())


def rewrite(folder: Path, change) -> None:
    """Change a manifest and seal it again, as an attacker would."""
    content = manifest_in(folder)
    del content["seal"]
    change(content)
    content["seal"] = seal_of(content)
    (folder / "manifest.json").write_text(json.dumps(content))


@pytest.fixture
def encoded(flexvae, tiny_model, photos, tmp_path) -> Path:
    result = flexvae("encode", tiny_model, photos, tmp_path / "latents", "--workers", 0)
    assert result.exit_code == 0, result.stderr
    return tmp_path / "latents"


def test_shards_are_in_the_layout_of_lightningdit(encoded, tiny_model):
    assert list(content_of(encoded)) == [
        "2x10x13/latents_rank00_shard000.safetensors",
        "2x4x4/latents_rank00_shard000.safetensors",
        "2x5x3/latents_rank00_shard000.safetensors",
        "manifest.json",
    ]
    with safe_open(encoded / "2x10x13" / "latents_rank00_shard000.safetensors", "pt") as file:
        assert sorted(file.keys()) == ["labels", "latents", "latents_std"]
        assert file.get_slice("latents").get_shape() == [2, 2, 10, 13]
        assert file.get_tensor("latents").dtype == torch.float32
        assert file.get_tensor("labels").tolist() == [1, 1]
        assert file.get_tensor("labels").dtype == torch.int64


def test_the_manifest_says_what_is_where(encoded, tiny_model):
    manifest = manifest_in(encoded)
    model = load_model(tiny_model)
    assert manifest["layout"] == "shards"
    assert manifest["model"]["weights_hash"] == model.weights_hash
    assert manifest["model"]["input"] == [3, 16, 16]
    assert manifest["model"]["bottleneck"] == "KL"
    assert manifest["latents"]["value"] == "moments"
    assert manifest["latents"]["scaling"] == "raw"
    assert manifest["latents"]["statistics"] == {"mean": [0.5, -0.5], "std": [2.0, 0.5]}
    assert manifest["preprocessing"] == {"background": "#ffffff", "exif": True}
    assert manifest["labels"] == ["", "b", "e"]
    assert [image["name"] for image in manifest["images"]] == ["a.jpg", "a.png", "b/c.png", "b/d.png", "e/f.bmp"]
    assert manifest["images"][2]["size"] == [37, 50]
    for file in manifest["files"]:
        data = (encoded / file["path"]).read_bytes()
        assert (file["sha256"], file["bytes"]) == (hashlib.sha256(data).hexdigest(), len(data))


def test_a_latent_is_the_posterior_mean(encoded, tiny_model, photos):
    model = load_model(tiny_model)
    with Image.open(photos / "b" / "c.png") as image:
        x = model.preprocess(image)
    place = manifest_in(encoded)["images"][2]
    latent = load_file(encoded / place["file"])["latents"][place["index"]]
    with torch.inference_mode():
        posterior = model.encoded(x[None]).posterior
    torch.testing.assert_close(latent, posterior.mean[0].clone())


@pytest.mark.parametrize("layout", ["shards", "files"])
def test_decoding_what_was_encoded_is_inference_bit_for_bit(flexvae, tiny_model, photos, tmp_path, layout):
    flexvae("infer", tiny_model, photos, tmp_path / "infer", "--workers", 0)
    flexvae("encode", tiny_model, photos, tmp_path / "latents", "--workers", 0, "--format", layout, "--shard-size", 1)
    result = flexvae("decode", tiny_model, tmp_path / "latents", tmp_path / "decode", "--json")
    assert result.exit_code == 0, result.stderr
    there, back = content_of(tmp_path / "infer"), content_of(tmp_path / "decode")
    assert sorted(back) == ["a.jpg.png", "a.png.png", "b/c.png", "b/d.png", "e/f.png"]
    assert all(back[name] == there[name] for name in back)
    assert sorted(json.loads(result.stdout)["images"].values()) == sorted(back)


def test_files_mirror_the_folders(flexvae, tiny_model, photos, tmp_path):
    out = tmp_path / "latents"
    flexvae("encode", tiny_model, photos, out, "--workers", 0, "--format", "files")
    suffixed = ["a.jpg.safetensors", "a.png.safetensors", "b/c.safetensors", "b/d.safetensors", "e/f.safetensors"]
    assert list(content_of(out)) == sorted([*suffixed, "manifest.json"])
    with safe_open(out / "b" / "c.safetensors", "pt") as file:
        assert file.get_tensor("latents").shape == (2, 10, 13)
        about = json.loads(file.metadata()["flexvae"])
    weights_hash = load_model(tiny_model).weights_hash
    assert about == {"weights_hash": weights_hash, "size": [37, 50], "latents": "raw", "value": "moments"}


@pytest.mark.parametrize("options", [[], ["--format", "files"], ["--flip", "--shard-size", 2]])
def test_the_same_input_gives_the_same_bytes(flexvae, tiny_model, photos, tmp_path, options):
    for name in ("one", "two"):
        flexvae("encode", tiny_model, photos, tmp_path / name, "--workers", 0, *options)
    one = content_of(tmp_path / "one")
    assert len(one) > 3
    assert one == content_of(tmp_path / "two")


def test_flip_adds_the_latents_of_the_mirrored_images(flexvae, tiny_model, photos, tmp_path):
    flexvae("encode", tiny_model, photos, tmp_path / "out", "--workers", 0, "--flip")
    mirrored = tmp_path / "mirrored"
    mirrored.mkdir()
    Image.fromarray(pixels(photos / "b" / "c.png")[:, ::-1]).save(mirrored / "c.png")
    flexvae("encode", tiny_model, mirrored, tmp_path / "flat", "--workers", 0)
    name = "2x10x13/latents_rank00_shard000.safetensors"
    both, one = load_file(tmp_path / "out" / name), load_file(tmp_path / "flat" / name)
    assert both["latents_flip"].shape == both["latents"].shape
    torch.testing.assert_close(both["latents_flip"][0], one["latents"][0])
    assert not torch.equal(both["latents_flip"][0], both["latents"][0])
    assert one["labels"].tolist() == [0]


def test_a_bad_file_is_recorded_and_the_rest_goes_on(flexvae, tiny_model, photos, tmp_path):
    (photos / "b" / "bad.jpg").write_text("no image")
    result = flexvae("encode", tiny_model, photos, tmp_path / "out", "--workers", 0, "--json")
    assert json.loads(result.stdout)["bad_files"] == 1
    assert [f["name"] for f in manifest_in(tmp_path / "out")["failures"]] == ["b/bad.jpg"]
    assert "b/bad.jpg" in (tmp_path / "out" / "bad_files.jsonl").read_text()
    assert flexvae("decode", tiny_model, tmp_path / "out", tmp_path / "back").exit_code == 0


def test_an_image_name_that_is_not_utf8_survives(flexvae, tiny_model, photos, tmp_path):
    (photos / "a.jpg").rename(photos / b"\xe9\n.jpg".decode("utf-8", "surrogateescape"))
    assert flexvae("encode", tiny_model, photos, tmp_path / "out", "--workers", 0).exit_code == 0
    assert flexvae("decode", tiny_model, tmp_path / "out", tmp_path / "back").exit_code == 0
    assert (tmp_path / "back" / b"\xe9\n.png".decode("utf-8", "surrogateescape")).is_file()


def test_latents_of_another_model_or_of_another_kind_are_not_gone_on_with(
    flexvae, tiny_model, make_model, photos, encoded, tmp_path
):
    before = content_of(encoded)
    other = make_model(tmp_path / "other", seed=1)
    for model, options, words in (
        (other, (), "of another model"),
        (tiny_model, ("--posterior", "mean"), "--posterior: moments, not mean"),
        (tiny_model, ("--flips", "--dtype", "fp16"), "--dtype: float32, not float16; --flips: False, not True"),
        (tiny_model, ("--resize", "16x16"), "preprocessing"),
    ):
        refused = flexvae("encode", model, photos, encoded, "--workers", 0, *options)
        assert refused.exit_code == Exit.USAGE
        assert words in refused.stderr
    assert content_of(encoded) == before


def test_overwrite_leaves_no_latents_of_before(flexvae, tiny_model, photos, tmp_path):
    out = tmp_path / "out"
    flexvae("encode", tiny_model, photos, out, "--workers", 0, "--shard-size", 1)
    assert len(content_of(out)) == 6
    (out / "mine.safetensors").write_bytes(b"mine")
    flexvae("encode", tiny_model, photos / "b", out, "--workers", 0, "--format", "files", "--overwrite")
    assert sorted(content_of(out)) == ["c.safetensors", "d.safetensors", "manifest.json", "mine.safetensors"]


def test_a_killed_encode_has_no_manifest_and_is_not_decoded(flexvae, tiny_model, encoded, tmp_path):
    (encoded / "manifest.json").unlink()
    refused = flexvae("decode", tiny_model, encoded, tmp_path / "out")
    assert refused.exit_code == Exit.MODEL
    assert "holds no manifest.json" in refused.stderr


def test_latents_of_another_model_are_refused(flexvae, make_model, encoded, tmp_path):
    other = make_model(tmp_path / "other", seed=1)
    refused = flexvae("decode", other, encoded, tmp_path / "out")
    assert refused.exit_code == Exit.MODEL
    assert "made by another model" in refused.stderr
    assert not (tmp_path / "out").exists()


def damaged(encoded: Path, kind: str) -> None:
    shard = encoded / "2x4x4" / "latents_rank00_shard000.safetensors"
    if kind == "flipped byte":
        shard.write_bytes(shard.read_bytes()[:-1] + b"\x7f")
    elif kind == "cut":
        shard.write_bytes(shard.read_bytes()[:-1])
    elif kind == "missing":
        shard.unlink()
    elif kind == "a link":
        shard.rename(encoded / "kept")
        shard.symlink_to(encoded / "kept")
    elif kind == "a folder that is a link":
        shard.parent.rename(encoded / "kept")
        shard.parent.symlink_to(encoded / "kept")


KINDS = ["flipped byte", "cut", "missing", "a link", "a folder that is a link"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_shard_is_refused_before_anything_is_written(flexvae, tiny_model, encoded, tmp_path, kind):
    damaged(encoded, kind)
    refused = flexvae("decode", tiny_model, encoded, tmp_path / "out")
    assert refused.exit_code == Exit.MODEL
    assert "latents_rank00_shard000.safetensors" in refused.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "tensors",
    [
        {"latents": torch.full((2, 2, 4, 4), float("nan"))},
        {"latents": torch.zeros(2, 2, 4, 4, dtype=torch.float64)},
        {"latents": torch.zeros(2, 2, 4, 5)},
        {"latents": torch.zeros(2, 3, 4, 4)},
        {"something": torch.zeros(2, 2, 4, 4)},
    ],
)
def test_a_shard_that_is_not_what_the_manifest_says_is_refused(flexvae, tiny_model, encoded, tmp_path, tensors):
    shard = encoded / "2x4x4" / "latents_rank00_shard000.safetensors"
    save_file(tensors, shard)

    def record(content):
        entry = next(file for file in content["files"] if file["path"].startswith("2x4x4"))
        entry.update(sha256=hashlib.sha256(shard.read_bytes()).hexdigest(), bytes=shard.stat().st_size)

    rewrite(encoded, record)
    refused = flexvae("decode", tiny_model, encoded, tmp_path / "out")
    assert refused.exit_code == Exit.MODEL
    assert "2x4x4" in refused.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1}', '{"format": 2}', '{"a": NaN}', "\x00", "[" * 100_000])
def test_a_damaged_manifest_is_refused(flexvae, tiny_model, encoded, tmp_path, text):
    (encoded / "manifest.json").write_text(text)
    assert flexvae("decode", tiny_model, encoded, tmp_path / "out").exit_code == Exit.MODEL


def test_one_changed_digit_breaks_the_seal(flexvae, tiny_model, encoded, photos, tmp_path):
    manifest = encoded / "manifest.json"
    manifest.write_text(manifest.read_text().replace("[37, 50]", "[37, 49]"))
    assert "its seal does not match" in flexvae("decode", tiny_model, encoded, tmp_path / "out").stderr
    for again in (flexvae("encode", tiny_model, photos, encoded), flexvae("latents", "verify", encoded)):
        assert again.exit_code == Exit.MODEL
        assert "its seal does not match" in again.stderr


def set_image(**values):
    return lambda content: content["images"][0].update(values)


def set_file(**values):
    return lambda content: content["files"][0].update(values)


@pytest.mark.parametrize(
    "change",
    [
        set_image(name="../escaped.jpg"),
        set_image(name="/tmp/escaped.jpg"),
        set_image(name="a/../../escaped.jpg"),
        set_image(name=""),
        set_image(name="a\0b"),
        set_image(name="x" * 300),
        set_image(name="\ud800.jpg"),
        set_image(name=3),
        set_image(name="a.png"),
        set_image(size=[-1, 5]),
        set_image(size=[10**9, 10**9]),
        set_image(size=[64, 64]),
        set_image(size=[16]),
        set_image(size=[16.0, True]),
        set_image(index=7),
        set_image(index=1),
        set_image(index=-1),
        set_image(label=9),
        set_image(file="nowhere.safetensors"),
        set_image(extra=1),
        set_file(path="../../run/model.safetensors"),
        set_file(path="/etc/passwd"),
        set_file(count=10**9),
        set_file(count=0),
        set_file(shape=[]),
        set_file(shape=[2, 4, 10**8]),
        set_file(sha256="../"),
        lambda content: content["files"].append(content["files"][0]),
        lambda content: content["images"].append(content["images"][0]),
        lambda content: content["images"].pop(),
        lambda content: content.pop("images"),
        lambda content: content.update(images={}),
        lambda content: content["model"].pop("weights_hash"),
        lambda content: content.update(command="rm -rf /"),
    ],
)
def test_a_hostile_manifest_is_refused_with_a_reason(flexvae, tiny_model, encoded, tmp_path, change):
    rewrite(encoded, change)
    before = set(tmp_path.rglob("*"))
    result = flexvae("decode", tiny_model, encoded, tmp_path / "out")
    assert result.exit_code == Exit.MODEL, result.stderr
    assert str(encoded) in result.stderr
    assert set(tmp_path.rglob("*")) == before


def test_encode_takes_what_is_left_out_from_a_config(flexvae, tiny_model, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "flexvae.toml").write_text(
        "[model]\nencoder = 'e.json'\ndecoder = 'd.json'\n[data]\nsource = 'x'\ninput = '3x16x16'\n"
        f"[train]\nrun_dir = '{tiny_model}'\nmax_steps = 1\ndevice = 'cpu'\n"
        "[encode]\ninput = 'photos/b'\noutput = 'latents'\nformat = 'files'\n"
    )
    assert flexvae("encode", "--workers", 0).exit_code == 0
    assert sorted(content_of(tmp_path / "latents")) == ["c.safetensors", "d.safetensors", "manifest.json"]


@pytest.fixture
def arrays(flexvae, make_model, tmp_path) -> tuple[Path, Path]:
    """A model of signals, whose reader is that of sounds, and latents of an array."""
    encoder, decoder = ["C1d_1_8_4_4", "SiLU", "C1d_8_4_1"], ["C1d_2_8_3_1_1", "UpS_4", "C1d_8_1_3_1_1"]
    model = make_model(tmp_path / "signals", encoder=encoder, decoder=decoder, shape=(1, 64))
    (tmp_path / "in").mkdir()
    np.save(tmp_path / "in" / "a.npy", np.linspace(-1, 1, 70, dtype=np.float32)[None])
    done = flexvae("encode", model, tmp_path / "in", tmp_path / "latents", "--workers", 0)
    assert done.exit_code == 0, done.stderr
    return model, tmp_path / "latents"


def test_the_manifest_names_the_reader_that_read(flexvae, arrays, tmp_path):
    model, latents = arrays
    preprocessing = manifest_in(latents)["preprocessing"]
    assert preprocessing["reader"] == "arrays"
    assert preprocessing["parameters"]["channels"] == "first"
    assert flexvae("decode", model, latents, tmp_path / "out").exit_code == 0
    assert np.load(tmp_path / "out" / "a.npy").shape == (1, 70)


@pytest.mark.parametrize(
    "about", [{"dtype": "O"}, {"dtype": "(99,)f4"}, {"dtype": 3.5}, {"low": "x"}, {"axes": "many"}, {"high": [1, 2]}]
)
def test_what_a_manifest_says_of_a_file_is_checked_before_anything_is_written(flexvae, arrays, tmp_path, about):
    model, latents = arrays
    rewrite(latents, lambda content: content["images"][0]["source"]["about"].update(about))
    refused = flexvae("decode", model, latents, tmp_path / "out")
    assert refused.exit_code == Exit.MODEL
    assert "no such file can be made of what is recorded of it" in refused.stderr
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def quantizing_model(tmp_path_factory, make_model) -> Path:
    """Two codes of 10 values for each position, from codebooks of fresh weights."""
    run = tmp_path_factory.mktemp("quantizing") / "run"
    return make_model(
        run, encoder=["C2d_3_8_4_4", "C2d_8_4_1"], bottleneck="RVQ_10_4_2", decoder=["UpS_4", "C2d_4_3_1"]
    )


@pytest.mark.parametrize("layout", ["shards", "files"])
def test_a_quantizer_s_indices_are_packed_and_decode_to_the_same_images(
    flexvae, quantizing_model, photos, tmp_path, layout
):
    encoded = flexvae("encode", quantizing_model, photos, tmp_path / "z", "--workers", 0, "--format", layout, "--flip")
    assert encoded.exit_code == 0, encoded.stderr
    manifest = manifest_in(tmp_path / "z")
    assert (manifest["latents"]["value"], manifest["latents"]["dtype"]) == ("indices", "uint4")
    for file in manifest["files"]:
        packed = load_file(tmp_path / "z" / file["path"])
        assert packed["indices"].dtype == packed["indices_flip"].dtype == torch.uint8
        assert packed["indices"].numel() == file["count"] * ((np.prod(file["shape"]) * 4 + 7) // 8)
    for command in (("decode", quantizing_model, tmp_path / "z"), ("infer", quantizing_model, photos)):
        done = flexvae(*command, tmp_path / command[0])
        assert done.exit_code == 0, done.stderr
    assert flexvae("encode", quantizing_model, photos, tmp_path / "again", "--format", layout, "--flip").exit_code == 0
    assert content_of(tmp_path / "z") == content_of(tmp_path / "again")
    for path in (tmp_path / "decode").rglob("*.png"):
        assert np.array_equal(pixels(path), pixels(tmp_path / "infer" / path.relative_to(tmp_path / "decode")))


def test_a_quantizer_s_latents_are_written_as_numbers_where_these_are_asked_for(
    flexvae, quantizing_model, photos, tmp_path
):
    options = ("--workers", 0, "--latents", "raw")
    assert flexvae("encode", quantizing_model, photos, tmp_path / "z", *options).exit_code == 0
    manifest = manifest_in(tmp_path / "z")
    assert (manifest["latents"]["value"], manifest["latents"]["dtype"]) == ("output", "float32")
    assert flexvae("decode", quantizing_model, tmp_path / "z", tmp_path / "images").exit_code == 0


def test_indices_are_refused_where_there_are_none(flexvae, tiny_model, photos, tmp_path):
    result = flexvae("encode", tiny_model, photos, tmp_path / "z", "--latents", "indices")
    assert result.exit_code == Exit.USAGE
    assert "the bottleneck KL gives no indices" in result.stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["latents"].update(dtype="uint5"), "which the bottleneck RVQ_10_4_2 does not give"),
        (lambda m: m["files"][0].update(shape=[1, *m["files"][0]["shape"][1:]]), "lacks 'indices'"),
    ],
)
def test_indices_that_are_not_the_quantizer_s_are_refused(flexvae, quantizing_model, photos, tmp_path, change, message):
    assert flexvae("encode", quantizing_model, photos, tmp_path / "z", "--workers", 0).exit_code == 0
    rewrite(tmp_path / "z", change)
    result = flexvae("decode", quantizing_model, tmp_path / "z", tmp_path / "images")
    assert result.exit_code == Exit.MODEL
    assert message in " ".join(result.stderr.split())
