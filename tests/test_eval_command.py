"""`flexvae eval`."""

from __future__ import annotations

import csv
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from flexvae_cli import load_model
from flexvae_cli.api import Encoded, Gaussian
from flexvae_cli.engine.checkpoint import save_checkpoint
from flexvae_cli.engine.evaluation.measuring import Instruments, distances
from flexvae_cli.engine.evaluation.protocol import digest_of_images
from flexvae_cli.engine.evaluation.rate import bits_of, gaussian_kl
from flexvae_cli.engine.evaluation.result import read_result, summary
from flexvae_cli.engine.metrics import mae, ms_ssim, to_levels
from flexvae_cli.engine.modelfiles import find_model
from flexvae_cli.errors import Exit


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")) / 255


def evaluated(flexvae, model, data, *options) -> dict:
    result = flexvae("eval", model, data, "--workers", 0, "--json", *options)
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def identity(weights) -> None:
    for tensor in weights.values():
        tensor.zero_()
        if tensor.dim() == 4:
            tensor[range(3), range(3)] = 1.0


@pytest.fixture(scope="session")
def copying(make_model, tmp_path_factory) -> Path:
    """A model that gives every image back."""
    layers = ["C2d_3_3_1_1_0"]
    run = tmp_path_factory.mktemp("copying") / "run"
    return make_model(run, encoder=layers, bottleneck="None", decoder=layers, change=identity)


# ------------------------------------------------------------------------------------------------------- by hand


def test_the_mean_absolute_error_is_that_of_the_definition():
    a, b = torch.tensor([[[0.0, 0.5]]]), torch.tensor([[[0.25, 1.0]]])
    assert mae(a, b) == 0.375


def test_rounding_is_that_of_an_8_bit_file():
    levels = to_levels(torch.tensor([0.0, 0.4 / 255, 0.6 / 255, 1.0])) * 255
    assert levels.tolist() == pytest.approx([0, 0, 1, 255])
    x, y = torch.zeros(1, 2, 2), torch.full((1, 2, 2), 0.9 / 255)  # in [-1, 1]: 0.45 levels apart
    found = {rounding: distances(x, y, Instruments(rounding)) for rounding in ("none", "8bit")}
    assert found["none"]["mae"] == pytest.approx(0.45 / 255, rel=1e-4)
    assert found["8bit"]["psnr"] == math.inf


def test_ms_ssim_wants_sides_above_160_pixels():
    generator = torch.Generator().manual_seed(0)
    a = torch.rand(3, 161, 170, generator=generator)
    assert ms_ssim(a, a) == pytest.approx(1)
    assert 0 < ms_ssim(a, 0.5 * a + 0.25) < 1
    assert ms_ssim(a[:, :160], a[:, :160]) is None


def test_the_divergence_is_that_of_two_normals():
    mean, log_variance = torch.tensor([[[2.0]]]), torch.tensor([[[math.log(0.25)]]])
    assert gaussian_kl(Gaussian(mean, log_variance)).item() == pytest.approx(0.5 * (4 + 0.25 - 1 + math.log(4)))
    unit = torch.zeros(1, 2, 3)
    assert gaussian_kl(Gaussian(unit, unit)).abs().max() == 0


def test_the_rate_of_a_posterior_is_its_divergence_in_bits(tiny_model):
    model = load_model(tiny_model)
    mean = torch.tensor([[[[1.0]], [[0.0]]], [[[2.0]], [[2.0]]]])  # two samples of two elements
    encoded = Encoded(mean, Gaussian(mean, torch.zeros_like(mean)))
    assert bits_of(model, encoded) == pytest.approx([0.5 / math.log(2), 4 / math.log(2)])


def test_the_rate_of_codes_is_their_number_times_the_bits_of_one(tiny_model):
    model = load_model(tiny_model)
    codes = Encoded(torch.zeros(2, 4, 3, 5), indices=torch.zeros(2, 3, 5, dtype=torch.int64))
    assert bits_of(model, codes) is None  # the module does not say what a code costs
    model.vae.bottleneck.bits = 10
    assert bits_of(model, codes) == [150.0, 150.0]
    assert bits_of(model, Encoded(torch.zeros(2, 4, 3, 5))) is None


def test_a_summary_leaves_out_what_has_no_finite_value():
    found = summary([1.0, None, math.inf, 2.0, 6.0])
    assert (found["count"], found["mean"], found["median"], found["min"], found["max"]) == (3, 3.0, 2.0, 1.0, 6.0)
    assert found["interval"] == [1.0, 6.0]  # a resample of three is all 1 in 1/27 = 3.7 % of cases, all 6 as often
    assert summary([None, math.inf]) is None
    assert summary([5.0])["interval"] is None


# ------------------------------------------------------------------------------------------------------- the command


def test_every_number_is_that_of_the_images(flexvae, tiny_model, photos):
    found = evaluated(flexvae, tiny_model, photos)
    model = load_model(tiny_model)
    rows = {row["name"]: row for row in found["images"]}
    assert list(rows) == ["a.jpg", "a.png", "b/c.png", "b/d.png", "e/f.bmp"]
    with Image.open(photos / "b/c.png") as image, torch.inference_mode():
        x = model.preprocess(image)
        a, b = ((t.numpy().astype(np.float64) + 1) / 2 for t in (x, model(x[None])[0]))
        mean, log_variance = (t.double() for t in model.encoded(x[None]).posterior)
    row = rows["b/c.png"]
    assert row["size"] == [37, 50]
    assert row["psnr"] == pytest.approx(-10 * math.log10(((a - b) ** 2).mean()), abs=1e-4)
    assert row["mae"] == pytest.approx(np.abs(a - b).mean(), abs=1e-6)
    nats = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum().item()
    assert row["rate"] == pytest.approx(nats / math.log(2) / (37 * 50), rel=1e-5)
    assert row["ms_ssim"] is None
    totals = found["totals"]["psnr"]
    assert totals["mean"] == pytest.approx(np.mean([r["psnr"] for r in rows.values()]))
    assert totals["median"] == pytest.approx(np.median([r["psnr"] for r in rows.values()]))
    assert totals["min"] < totals["interval"][0] < totals["mean"] < totals["interval"][1] < totals["max"]
    assert found["not_measured"]["lpips"] == "give --lpips FILE"
    assert "161 pixels" in found["not_measured"]["ms_ssim"]


def test_it_agrees_with_infer(flexvae, tiny_model, photos, tmp_path):
    flexvae("infer", tiny_model, photos, tmp_path / "out", "--workers", 0)
    infer = json.loads((tmp_path / "out" / "metrics.json").read_text())
    found = evaluated(flexvae, tiny_model, photos)
    assert [row["psnr"] for row in found["images"]] == [row["psnr"] for row in infer["images"]]
    assert found["totals"]["ssim"]["mean"] == infer["mean"]["ssim"]
    rounded = evaluated(flexvae, tiny_model, photos, "--rounding", "8bit")
    for row, other in zip(rounded["images"], infer["images"], strict=True):  # what infer wrote is rounded so
        error = ((pixels(photos / row["name"]) - pixels(tmp_path / "out" / other["output"])) ** 2).mean()
        assert row["psnr"] == pytest.approx(-10 * math.log10(error), abs=1e-4)


def test_the_result_is_written_as_json_and_csv(flexvae, tiny_model, photos, tmp_path):
    found = evaluated(flexvae, tiny_model, photos, "--output", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "eval.json").read_text()) == found
    assert read_result(tmp_path / "out").model.weights_hash == load_model(tiny_model).weights_hash
    with (tmp_path / "out" / "eval.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["name", "height", "width", "psnr", "ssim", "mae", "rate"]
    for row, given in zip(rows, found["images"], strict=True):
        assert (row["name"], int(row["height"]), float(row["psnr"])) == (given["name"], given["size"][0], given["psnr"])


@pytest.mark.parametrize("name", ["r.json", "deep/r.csv"])
def test_a_file_gets_the_other_one_beside_it(flexvae, tiny_model, photos, tmp_path, name):
    (tmp_path / "mine.txt").touch()
    evaluated(flexvae, tiny_model, photos, "--output", tmp_path / name)
    folder = (tmp_path / name).parent
    assert {"r.csv", "r.json"} <= {p.name for p in folder.iterdir()}
    again = flexvae("eval", tiny_model, photos, "--output", tmp_path / name)
    assert again.exit_code == Exit.USAGE
    assert "is there already" in again.stderr
    evaluated(flexvae, tiny_model, photos, "--output", tmp_path / name, "--overwrite")


def test_the_stamp_says_how_it_was_measured(flexvae, tiny_model, photos):
    found = evaluated(flexvae, tiny_model, photos, "--rounding", "8bit")
    protocol = found["protocol"]
    assert protocol["rounding"] == "8bit"
    assert (protocol["precision"], protocol["device"], protocol["resize"]) == ("fp32", "cpu", "none")
    assert protocol["background"] == "#ffffff"
    assert protocol["data"]["images"] == 5
    assert found["model"]["weights_hash"] == load_model(tiny_model).weights_hash
    assert found["model"]["weights"] == "raw"
    assert found["made_with"]["torch"] == torch.__version__


def test_the_hash_of_the_data_is_that_of_names_and_contents(flexvae, tiny_model, photos):
    first = evaluated(flexvae, tiny_model, photos)["protocol"]["data"]["sha256"]
    assert evaluated(flexvae, tiny_model, photos)["protocol"]["data"]["sha256"] == first
    (photos / "b/c.png").rename(photos / "b/cc.png")
    renamed = evaluated(flexvae, tiny_model, photos)["protocol"]["data"]["sha256"]
    (photos / "b/cc.png").rename(photos / "b/c.png")
    with Image.open(photos / "b/c.png") as image:
        image.transpose(Image.Transpose.ROTATE_180).save(photos / "b/c.png")
    changed = evaluated(flexvae, tiny_model, photos)["protocol"]["data"]["sha256"]
    assert len({first, renamed, changed}) == 3
    assert digest_of_images([]) != (1, first)


def test_identical_images_have_an_infinite_psnr(flexvae, copying, photos, tmp_path):
    found = evaluated(flexvae, copying, photos / "b", "--output", tmp_path / "out")
    assert found["identical"] == 2
    assert [(row["psnr"], row["identical"]) for row in found["images"]] == [(None, True)] * 2
    assert "psnr" not in found["totals"]
    assert found["totals"]["mae"]["max"] == 0
    assert found["not_measured"]["rate"] == "the bottleneck has no rate"
    assert (tmp_path / "out" / "eval.csv").read_text().splitlines()[1].startswith("c.png,37,50,inf,")
    talk = flexvae("eval", copying, photos / "b", "--workers", 0)
    assert "infinite PSNR" in talk.stderr
    assert "LPIPS: not measured (give --lpips FILE)" in talk.stderr


def test_large_images_have_ms_ssim_and_the_table_has_intervals(flexvae, tiny_model):
    result = flexvae("eval", tiny_model, "builtin:scenery/val", "--limit", 3, "--workers", 0)
    assert result.exit_code == 0, result.stderr
    lines = {line.partition("  ")[0].split(" |")[0].strip(): line for line in result.stdout.splitlines()}
    assert {"PSNR (dB)", "SSIM", "MS-SSIM", "MAE", "rate (bpp)"} <= set(lines)
    assert " to " in lines["MS-SSIM"]
    assert lines["MAE"].rstrip().endswith("3")


def test_bad_files_are_told_once_and_left_out(flexvae, tiny_model, photos, tmp_path):
    before = evaluated(flexvae, tiny_model, photos)
    (photos / "b" / "empty.jpg").touch()
    result = flexvae("eval", tiny_model, photos, "--workers", 0, "--json", "--output", tmp_path / "out")
    found = json.loads(result.stdout)
    assert result.exit_code == 0
    assert [each["name"] for each in found["failures"]] == ["b/empty.jpg"]
    assert result.stderr.count("b/empty.jpg") == 1
    assert "b/empty.jpg" in (tmp_path / "out" / "bad_files.jsonl").read_text()
    assert found["protocol"] == before["protocol"]


def test_nothing_readable_is_an_error_of_the_data(flexvae, tiny_model, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_text("no image")
    refused = flexvae("eval", tiny_model, tmp_path / "in", "--workers", 0, "--output", tmp_path / "out")
    assert refused.exit_code == Exit.DATA
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["bad_files.jsonl"]


def test_numbers_that_are_not_finite_are_refused(flexvae, make_model, photos, tmp_path):
    run = make_model(tmp_path / "run", change=lambda weights: next(iter(weights.values())).fill_(float("nan")))
    refused = flexvae("eval", run, photos, "--workers", 0, "--output", tmp_path / "out")
    assert refused.exit_code == Exit.MODEL
    assert "latents of a.jpg that are not finite" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["nothing", "photos"], Exit.MODEL, "no such model"),
        (["MODEL", "nothing"], Exit.DATA, "no such file or folder"),
        (["MODEL", "empty"], Exit.DATA, "no images in"),
        (["MODEL", "builtin:sea"], Exit.USAGE, "no built-in set"),
        (["MODEL", "photos", "--device", "gpu"], Exit.USAGE, "there is no 'gpu'"),
        (["MODEL", "photos", "--lpips", "nothing.safetensors"], Exit.DATA, "nothing.safetensors"),
        (["MODEL", "photos", "--output", "photos/b"], Exit.USAGE, "must not lie in the input"),
        (["MODEL", "photos", "--output", "photos/r.json"], Exit.USAGE, "must not lie in the input"),
        (["MODEL", "photos", "--output", "full"], Exit.USAGE, "is not empty"),
        (["MODEL", "photos", "--weights", "raw"], Exit.MODEL, "one set of weights only"),
        (["MODEL", "photos", "--lpips", "photos/a.png"], Exit.MODEL, "a.png"),
    ],
)
def test_what_cannot_be_is_refused(flexvae, tiny_model, photos, tmp_path, monkeypatch, arguments, code, words):
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "full"):
        (tmp_path / name).mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    found = flexvae("eval", *[tiny_model if a == "MODEL" else a for a in arguments], "--workers", 0)
    assert found.exit_code == code, found.stderr
    assert words in found.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_a_model_that_takes_no_images_says_so(flexvae, make_model, photos, tmp_path):
    run = make_model(tmp_path / "run", encoder=["SiLU"], bottleneck="None", decoder=["SiLU"], shape=(2, 8, 8, 8))
    for command in ("eval", "stats"):
        refused = flexvae(command, run, photos, "--workers", 0)
        assert refused.exit_code == Exit.DATA
        assert "samples of 2x8x8x8 have 3 axes" in refused.stderr


def test_raw_weights_are_measured_where_there_is_a_running_mean(flexvae, tiny_model, photos, tmp_path):
    files = find_model(tiny_model)
    raw = {f"weights.{name}": tensor * 0.5 for name, tensor in files.weights().items()}
    run = tmp_path / "run"
    save_checkpoint(run, 1, weights=files.weights(), model={**files.model, "ema": 0.9}, training=raw, state={})
    mean, under = evaluated(flexvae, run, photos), evaluated(flexvae, run, photos, "--weights", "raw")
    assert mean["totals"] == evaluated(flexvae, tiny_model, photos)["totals"]
    assert under["totals"]["psnr"]["mean"] != mean["totals"]["psnr"]["mean"]
    assert (mean["model"]["weights"], under["model"]["weights"]) == ("ema", "raw")
    assert flexvae("export", run, tmp_path / "bundle", "--weights", "raw").exit_code == 0
    exported = evaluated(flexvae, tmp_path / "bundle", photos)
    assert exported["totals"] == under["totals"]
    assert exported["model"]["weights_hash"] == under["model"]["weights_hash"]


def test_a_name_that_is_not_utf8_survives(flexvae, copying, photos, tmp_path):
    (photos / "a.jpg").rename(photos / b'\xe9\n,".jpg'.decode("utf-8", "surrogateescape"))
    evaluated(flexvae, copying, photos, "--output", tmp_path / "out")
    assert read_result(tmp_path / "out").images[-1].name == b'\xe9\n,".jpg'.decode("utf-8", "surrogateescape")
    assert b'"\xe9\n,"".jpg",16,16' in (tmp_path / "out" / "eval.csv").read_bytes()


def test_the_whole_way_in_a_process_of_its_own(copying, photos, tmp_path):
    command = [sys.executable, "-m", "flexvae_cli", "eval", str(copying), str(photos), "--output", str(tmp_path / "a")]
    done = subprocess.run([*command, "--workers", "0"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "MAE" in done.stdout
    command = [sys.executable, "-m", "flexvae_cli", "compare", str(tmp_path / "a"), str(tmp_path / "a"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["measures"]["mae"]["ties"] == 5


@pytest.fixture(scope="module")
def lpips_file(tmp_path_factory) -> Path:
    """The weights of LPIPS on AlexNet by name and shape, their values drawn."""
    import torchvision
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(0)
    features = torchvision.models.alexnet(weights=None).features.state_dict()
    made = {f"features.{name}": 0.05 * torch.randn(v.shape, generator=generator) for name, v in features.items()}
    for depth, channels in enumerate((64, 192, 384, 256, 256)):
        made[f"lin{depth}.model.1.weight"] = torch.rand(1, channels, 1, 1, generator=generator)
    path = tmp_path_factory.mktemp("lpips") / "alex.safetensors"
    save_file(made, path)
    return path


def test_lpips_is_measured_where_weights_are_given(flexvae, tiny_model, copying, photos, lpips_file):
    found = evaluated(flexvae, tiny_model, photos, "--lpips", lpips_file)
    rows = {row["name"]: row["lpips"] for row in found["images"]}
    assert rows["b/c.png"] > 0
    assert rows["e/f.bmp"] is None  # 20 x 12 is too small for AlexNet
    assert found["totals"]["lpips"]["count"] == 2
    assert found["protocol"]["lpips"].startswith("version 0.1, alex, weights ")
    assert "lpips" not in found["not_measured"]
    same = evaluated(flexvae, copying, photos, "--lpips", lpips_file)
    assert same["totals"]["lpips"]["max"] == pytest.approx(0, abs=1e-6)
    small = evaluated(flexvae, tiny_model, photos / "e", "--lpips", lpips_file)
    assert small["not_measured"]["lpips"] == "the images are too small for its net"


def test_the_checks_before_the_work_need_no_torch(tiny_model, photos):
    script = f"""
import sys
from pathlib import Path
from flexvae_cli.commands.eval import evaluate
from flexvae_cli.errors import FlexVAEError
try:
    evaluate(Path({str(tiny_model)!r}), {str(photos)!r}, Path({str(photos / "r.json")!r}))
except FlexVAEError as error:
    print(error)
print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "must not lie in the input" in done.stdout
    assert done.stdout.endswith("False\n")
