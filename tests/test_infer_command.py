from __future__ import annotations

import json
import math
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flexvae_cli import load_model
from flexvae_cli.engine.data.images import to_image
from flexvae_cli.errors import Exit

CONFIG = """
[model]
encoder = "encoder.json"
decoder = "decoder.json"
[data]
source = "builtin:scenery"
input = "3x16x16"
[train]
run_dir = "{run}"
max_steps = 1
device = "cpu"
[infer]
input = "{source}"
output = "from-config"
"""


def image_at(path: Path) -> Image.Image:
    with Image.open(path) as image:
        image.load()
        return image


def files_in(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def content_of(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in files_in(folder)}


def test_every_image_comes_out_as_large_as_it_went_in(flexvae, tiny_model, photos, tmp_path):
    out = tmp_path / "out"
    result = flexvae("infer", tiny_model, photos, out, "--workers", 0)
    assert result.exit_code == 0, result.stderr
    images = ["a.jpg.png", "a.png.png", "b/c.png", "b/d.png", "e/f.png"]
    assert files_in(out) == sorted([*images, "metrics.json", "sheet.png"])
    sizes = [image_at(out / name).size for name in images]
    assert sizes == [(16, 16), (16, 16), (50, 37), (52, 40), (12, 20)]
    assert "mean of 5" in result.stdout
    assert "37x50" in result.stdout
    assert "sheet.png" in result.stderr


def test_the_reconstruction_is_what_the_model_gives(flexvae, tiny_model, photos, tmp_path):
    flexvae("infer", tiny_model, photos / "b", tmp_path / "out", "--workers", 0)
    model = load_model(tiny_model)
    x = model.preprocess(image_at(photos / "b" / "c.png"))
    expected = np.asarray(to_image(model(x[None])[0]))
    assert np.abs(np.asarray(image_at(tmp_path / "out" / "c.png")).astype(int) - expected).max() <= 1


def test_metrics_are_those_of_the_images(flexvae, tiny_model, photos, tmp_path):
    out = tmp_path / "out"
    result = flexvae("infer", tiny_model, photos, out, "--workers", 0, "--json")
    metrics = json.loads(result.stdout)
    assert metrics == json.loads((out / "metrics.json").read_text())
    assert metrics["weights_hash"] == load_model(tiny_model).weights_hash
    rows = {row["name"]: row for row in metrics["images"]}
    assert rows["b/c.png"]["size"] == [37, 50]
    a, b = (np.asarray(image_at(p)) / 255 for p in (photos / "b/c.png", out / rows["b/c.png"]["output"]))
    by_hand = 10 * math.log10(1 / ((a - b) ** 2).mean())
    assert rows["b/c.png"]["psnr"] == pytest.approx(by_hand, abs=0.05)  # the PNG is rounded to 8 bits, the metric not
    assert metrics["mean"]["psnr"] == pytest.approx(np.mean([row["psnr"] for row in metrics["images"]]))


def test_identical_images_have_no_number_in_json(flexvae, make_model, photos, tmp_path):
    def identity(weights):
        for tensor in weights.values():
            tensor.zero_()
            if tensor.dim() == 4:
                tensor[range(3), range(3)] = 1.0

    layers = ["C2d_3_3_1_1_0"]
    run = make_model(tmp_path / "run", encoder=layers, bottleneck="None", decoder=layers, change=identity)
    result = flexvae("infer", run, photos / "b", tmp_path / "out", "--workers", 0, "--json")
    metrics = json.loads(result.stdout)
    assert [row["identical"] for row in metrics["images"]] == [True, True]
    assert metrics["mean"] == {"psnr": None, "ssim": pytest.approx(1)}
    for name in ("c.png", "d.png"):
        original, copy = (np.asarray(image_at(folder / name)) for folder in (photos / "b", tmp_path / "out"))
        assert (original == copy).all()
    assert "inf" in flexvae("infer", run, photos / "b", tmp_path / "again", "--workers", 0).stdout


def test_bad_files_cost_a_line_each(flexvae, tiny_model, photos, tmp_path):
    (photos / "b" / "empty.jpg").touch()
    (photos / "z.png").write_bytes((photos / "b" / "d.png").read_bytes()[:-40])
    out = tmp_path / "out"
    result = flexvae("infer", tiny_model, photos, out, "--workers", 0)
    assert result.exit_code == 0
    lines = [json.loads(line) for line in (out / "bad_files.jsonl").read_text().splitlines()]
    assert [line["name"] for line in lines] == ["b/empty.jpg", "z.png"]
    assert result.stderr.count("b/empty.jpg") == 1
    assert json.loads((out / "metrics.json").read_text())["bad_files"] == 2


def test_nothing_readable_is_an_error_of_the_data(flexvae, tiny_model, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_text("no image")
    refused = flexvae("infer", tiny_model, tmp_path / "in", tmp_path / "out", "--workers", 0)
    assert refused.exit_code == Exit.DATA
    assert files_in(tmp_path / "out") == ["bad_files.jsonl"]


def test_the_same_input_gives_the_same_bytes_whoever_reads(flexvae, tiny_model, photos, tmp_path):
    for name, workers in (("one", 0), ("two", 1)):
        result = flexvae("infer", tiny_model, photos, tmp_path / name, "--workers", workers)
        assert result.exit_code == 0, result.stderr
    assert content_of(tmp_path / "one") == content_of(tmp_path / "two")


def test_limit_takes_the_first(flexvae, tiny_model, photos, tmp_path):
    flexvae("infer", tiny_model, photos, tmp_path / "out", "--workers", 0, "--limit", 1)
    assert files_in(tmp_path / "out") == ["a.jpg.png", "metrics.json", "sheet.png"]


def test_a_single_file_and_a_built_in_set_are_sources(flexvae, tiny_model, photos, tmp_path):
    assert flexvae("infer", tiny_model, photos / "e" / "f.bmp", tmp_path / "one", "--workers", 0).exit_code == 0
    assert (tmp_path / "one" / "f.png").is_file()
    arguments = ("infer", tiny_model, "builtin:scenery/val", tmp_path / "two", "--workers", 0, "--limit", 2)
    assert flexvae(*arguments).exit_code == 0
    assert image_at(tmp_path / "two" / "badlands5.png").size == (512, 256)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["nothing", "photos", "out"], Exit.MODEL, "no such model"),
        (["MODEL", "nothing", "out"], Exit.DATA, "no such file or folder"),
        (["MODEL", "photos", "photos/out"], Exit.USAGE, "must not lie in the input"),
        (["MODEL", "photos", "full"], Exit.USAGE, "is not empty"),
        (["MODEL", "photos", "out", "--device", "gpu"], Exit.USAGE, "there is no 'gpu'"),
        (["MODEL", "photos"], Exit.USAGE, "infer lacks OUTPUT"),
        ([], Exit.USAGE, "no flexvae.toml here"),
        (["MODEL", "builtin:sea", "out"], Exit.USAGE, "no built-in set"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    flexvae, tiny_model, photos, tmp_path, monkeypatch, arguments, code, words
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    before = files_in(tmp_path)
    found = flexvae("infer", *[tiny_model if a == "MODEL" else a for a in arguments])
    assert found.exit_code == code
    assert words in found.stderr
    assert files_in(tmp_path) == before


def test_overwrite_replaces_what_has_the_same_name(flexvae, tiny_model, photos, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    (out / "sheet.png").write_text("old")
    assert flexvae("infer", tiny_model, photos, out, "--workers", 0, "--overwrite").exit_code == 0
    assert (out / "mine.txt").read_text() == "mine"
    assert image_at(out / "sheet.png").width > 100


def test_a_config_fills_in_what_is_left_out(flexvae, tiny_model, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "flexvae.toml").write_text(CONFIG.format(run=tiny_model, source=photos / "b"))
    assert flexvae("infer", "--workers", 0).exit_code == 0
    assert "c.png" in files_in(tmp_path / "from-config")
    wins = ("infer", tiny_model, photos / "e", tmp_path / "mine", "--config", "flexvae.toml", "--workers", 0)
    assert flexvae(*wins).exit_code == 0
    assert "f.png" in files_in(tmp_path / "mine")
    assert flexvae("infer", "--set", "infer.output='by-set'", "--workers", 0).exit_code == 0
    assert "c.png" in files_in(tmp_path / "by-set")


def test_a_model_that_takes_no_images_says_so(flexvae, make_model, photos, tmp_path):
    layers = ["SiLU"]
    run = make_model(tmp_path / "run", encoder=layers, bottleneck="None", decoder=layers, shape=(2, 8, 8, 8))
    refused = flexvae("infer", run, photos, tmp_path / "out", "--workers", 0)
    assert refused.exit_code == Exit.DATA
    assert "samples of 2x8x8x8 have 3 axes" in refused.stderr


@pytest.mark.parametrize("command", ["infer", "encode"])
def test_the_checks_before_the_work_need_no_torch(tiny_model, photos, command):
    script = f"""
import sys
from pathlib import Path
from flexvae_cli.commands.{command} import {command}
from flexvae_cli.errors import FlexVAEError
try:
    {command}(Path({str(tiny_model)!r}), {str(photos)!r}, Path({str(photos)!r}))
except FlexVAEError as error:
    print(error)
print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "must not lie in the input" in done.stdout
    assert done.stdout.endswith("False\n")


def test_the_suite_has_no_network():
    with pytest.raises(RuntimeError, match="over the network"):
        socket.create_connection(("192.0.2.1", 80), timeout=1)
    with pytest.raises(RuntimeError, match="over the network"):
        socket.getaddrinfo("example.org", 80)
