"""`flexvae quantize`: a trained net's weights in few bits, chosen by what they cost, and read by every command."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from learners import learner_for
from PIL import Image

from flexvae_cli import load_model
from flexvae_cli.engine.checkpoint import save_checkpoint
from flexvae_cli.engine.data.images import pillow_array, to_tensor
from flexvae_cli.engine.data.sources import list_images
from flexvae_cli.engine.inference import read_samples
from flexvae_cli.engine.modelfiles import find_model
from flexvae_cli.engine.quantization.packed import LEAST, MOST, packed_weights, quantize, unpacked_weights
from flexvae_cli.engine.quantization.planning import best_plan, greedy_plan, plan_bytes
from flexvae_cli.engine.quantization.sensitivity import Gauge, Layer
from flexvae_cli.engine.reading import json_bytes, seal_of
from flexvae_cli.errors import Exit, ModelError, UsageError

SCENERY = Path(__file__).parents[1] / "flexvae_cli/assets/scenery/val"
ENCODER = ["C2d_3_32_4_4", "SiLU", {"residual": ["VAERB_32_32"]}, "C2d_32_4_1"]
DECODER = ["C2d_4_32_1", "VAERB_32_32", "UpS_4", "C2d_32_3_3_1_1"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four small photographs."""
    folder = tmp_path_factory.mktemp("data")
    for path in sorted(SCENERY.iterdir())[:4]:
        with Image.open(path) as image:
            image.convert("RGB").resize((32, 24)).save(folder / f"{path.stem}.png")
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """A run whose tiny net has learned these photographs a little."""
    folder = tmp_path_factory.mktemp("trained")
    for name, codes in (("e.json", ENCODER), ("d.json", DECODER)):
        (folder / name).write_text(json.dumps(codes))
    learner = learner_for(folder, model={"bottleneck": "None"}, optimizer={"lr": 3e-3})
    x = torch.stack([to_tensor(pillow_array(Image.open(path), 3)) for path in sorted(data.iterdir())])
    for step in range(80):
        learner.step(step, [x])
    model = {
        **learner.plan.net.describe(),
        "output": "samples",
        "preprocessing": {},
        "latents": {"mean": [], "std": []},
    }
    save_checkpoint(folder / "run", 80, weights=learner.weights(), model=model, training={}, state={})
    return folder / "run"


def quantized(flexvae, *arguments, code: int = 0) -> dict:
    ended = flexvae("quantize", *arguments, "--workers", 0, "--json")
    assert ended.exit_code == code, ended.stderr
    return json.loads(ended.stdout) if code == 0 else {"said": ended.stderr}


def psnr(flexvae, model: Path, data: Path) -> float:
    ended = flexvae("eval", model, data, "--workers", 0, "--json")
    assert ended.exit_code == 0, ended.stderr
    return json.loads(ended.stdout)["totals"]["psnr"]["mean"]


@pytest.fixture(scope="module")
def eight(flexvae, trained, data, tmp_path_factory) -> tuple[Path, dict]:
    bundle = tmp_path_factory.mktemp("eight") / "bundle"
    return bundle, quantized(flexvae, trained, data, "--bits", 8, "-o", bundle)


@pytest.fixture(scope="module")
def auto(flexvae, trained, data, tmp_path_factory) -> tuple[Path, dict]:
    bundle = tmp_path_factory.mktemp("auto") / "bundle"
    return bundle, quantized(flexvae, trained, data, "--max-drop", "0.5dB", "-o", bundle)


# ------------------------------------------------------------------------------------------------------- one tensor


@pytest.mark.parametrize("bits", [2, 3, 5, 8, 11, 16])
def test_packed_weights_come_back_as_they_were_measured(bits, tmp_path):
    draw = torch.Generator().manual_seed(bits)
    weights = {"a": torch.randn(5, 7, 3, 3, generator=draw), "b": torch.randn(3, generator=draw)}
    weights["a"][2] = 0.25  # a slice without a range
    tensors, about = packed_weights(weights, {"a": bits})
    assert tensors["a:codes"].numel() == (5 * 63 * bits + 7) // 8
    found = unpacked_weights(tensors, about, tmp_path)
    assert found.keys() == weights.keys()
    assert torch.equal(found["a"], quantize(weights["a"], bits).value())
    assert torch.equal(found["b"], weights["b"])
    assert torch.equal(found["a"][2], weights["a"][2])
    step = quantize(weights["a"], bits).step.view(-1, 1, 1, 1)
    inside = (weights["a"] - found["a"]).abs() <= step * 0.51
    assert inside.float().mean() > 0.8  # the rest is cut off, for finer steps


def test_more_bits_are_nearer_and_cutting_off_pays_with_few():
    weight = torch.randn(8, 400, generator=torch.Generator().manual_seed(0))
    errors = [(quantize(weight, bits).value() - weight).square().mean().item() for bits in range(LEAST, MOST + 1)]
    assert errors == sorted(errors, reverse=True)
    low, high = weight.amin(1, keepdim=True), weight.amax(1, keepdim=True)
    whole_range = ((weight - low) / (high - low) * 3).round() / 3 * (high - low) + low
    assert errors[0] < 0.8 * (whole_range - weight).square().mean().item()


# ------------------------------------------------------------------------------------------------------------ plans


def layer(place: str, numbers: int) -> Layer:
    return Layer(place, "C2d", (f"{place}.weight",), {bits: numbers * bits // 8 for bits in [*range(2, 17), 32]})


def test_bytes_go_where_a_decibel_saves_most():
    layers = [layer("large", 8000), layer("small", 80)]
    drops = {place: {2: 0.4, 4: 0.1, 8: 0.0} for place in ("large", "small")}
    assert greedy_plan(layers, drops, 0.45) == {"large": 2, "small": 8}
    assert greedy_plan(layers, drops, 0.5) == {"large": 2, "small": 4}
    assert greedy_plan(layers, drops, 0.05) == {"large": 8, "small": 8}


@pytest.mark.parametrize("together", [0.5, 1.0, 1.7])
def test_the_plan_that_is_taken_is_measured_and_within_the_budget(together):
    """Whether the layers' costs add up to less or to more than their sum."""
    layers = [layer(f"l{n}", 1000 + n) for n in range(4)]
    drops = {each.place: {bits: 0.64 / 4 ** (bits - 2) for bits in range(2, 9)} for each in layers}
    asked = []

    def drop_of(plan):
        asked.append(dict(plan))
        return together * sum(drops[place][bits] for place, bits in plan.items())

    plan, drop = best_plan(layers, drops, 0.3, drop_of)
    assert plan in asked
    assert drop == drop_of(plan) <= 0.3
    within = [p for p in asked if together * sum(drops[k][b] for k, b in p.items()) <= 0.3]
    assert plan_bytes(layers, plan) == min(plan_bytes(layers, p) for p in within)
    with pytest.raises(UsageError, match=r"no plan within 0\.3 dB"):
        best_plan(layers, drops, 0.3, lambda _: 0.31)


# ------------------------------------------------------------------------------------------------------- the command


def test_the_file_shrinks_and_the_drop_is_what_was_measured(flexvae, trained, data, eight):
    bundle, told = eight
    before, after = (find_model(path).path / "model.safetensors" for path in (trained, bundle))
    assert after.stat().st_size < 0.45 * before.stat().st_size
    assert told["bytes"]["after"] < 0.4 * told["bytes"]["before"]
    assert told["psnr"]["drop"] <= 0.3
    assert psnr(flexvae, trained, data) == pytest.approx(told["psnr"]["before"], abs=1e-9)
    assert psnr(flexvae, bundle, data) == pytest.approx(told["psnr"]["after"], abs=1e-9)
    places = ["encoder.0", "encoder.2.body.0", "encoder.3", "decoder.1", "decoder.3"]  # slices of decoder.0 are tiny
    assert [each["layer"] for each in told["layers"]] == places
    assert [each["code"] for each in told["layers"]][:2] == ["C2d_3_32_4_4", "VAERB_32_32"]
    assert {each["bits"] for each in told["layers"]} == {8}


def test_auto_takes_fewer_bytes_where_the_budget_allows(flexvae, data, eight, auto):
    bundle, told = auto
    assert told["bytes"]["after"] < 0.9 * eight[1]["bytes"]["after"]
    assert 0 < told["psnr"]["drop"] <= 0.5
    assert psnr(flexvae, bundle, data) == pytest.approx(told["psnr"]["after"], abs=1e-9)
    assert len({each["bits"] for each in told["layers"]}) > 1
    for each in told["layers"]:
        assert each["drop"] == each["drops"][str(each["bits"])]


def test_loading_gives_the_weights_that_were_measured(trained, data, auto):
    bundle, told = auto
    model = load_model(trained)
    samples = list(read_samples(model, list_images(str(data)), workers=0, report=print))
    gauge = Gauge(model, samples, 8)
    untouched = {name: tensor.clone() for name, tensor in model.vae.state_dict().items()}
    plan = {each["layer"]: each["bits"] for each in told["layers"]}
    assert gauge.psnr(plan) == told["psnr"]["after"]
    assert all(torch.equal(untouched[name], tensor) for name, tensor in model.vae.state_dict().items())
    loaded = load_model(bundle).vae.state_dict()
    for each in gauge.layers:
        for name in each.weights:
            assert torch.equal(loaded[name], quantize(untouched[name], plan[each.place]).value())


def test_every_command_reads_it(flexvae, data, auto, tmp_path):
    bundle, told = auto
    about = json.loads(flexvae("inspect", bundle, "--json").stdout)
    bits = {f"{part['name']}.{row['key']}": row["bits"] for part in about["parts"] for row in part["rows"]}
    assert {place: n for place, n in bits.items() if n} == {each["layer"]: each["bits"] for each in told["layers"]}
    assert about["quantized"]["psnr"]["after"] == told["psnr"]["after"]
    assert about["quantized"]["data"] == str(data)
    shown = flexvae("inspect", bundle).stdout
    assert re.search(r"share +\|bits +\| +MACs", shown)
    assert "the weights of 5 layers are stored in" in shown
    assert flexvae("export", bundle, tmp_path / "copy").exit_code == 0
    for number, model in enumerate((bundle, tmp_path / "copy")):
        ended = flexvae("infer", model, data, tmp_path / f"out{number}", "--workers", 0)
        assert ended.exit_code == 0, ended.stderr
    outs = [sorted((tmp_path / f"out{n}").glob("*.png")) for n in (0, 1)]
    assert [p.read_bytes() for p in outs[0]] == [p.read_bytes() for p in outs[1]]
    assert flexvae("encode", bundle, data, tmp_path / "latents", "--workers", 0).exit_code == 0
    assert flexvae("decode", bundle, tmp_path / "latents", tmp_path / "again").exit_code == 0


def test_statistics_of_the_latents_are_those_of_its_own_weights(flexvae, make_model, photos, tmp_path):
    original = make_model(tmp_path / "run", bottleneck="KL")
    written = flexvae("quantize", original, photos, "--bits", 8, "-o", tmp_path / "q", "--workers", 0)
    assert written.exit_code == 0, written.stderr
    assert "its latents have no statistics yet: flexvae stats" in written.stderr
    assert "latents" in find_model(original).model
    assert "latents" not in find_model(tmp_path / "q").model
    encode = ("encode", tmp_path / "q", photos, tmp_path / "z", "--latents", "normalized", "--workers", 0)
    assert "--write BUNDLE measures them anew" in flexvae(*encode).stderr
    told = flexvae("stats", tmp_path / "q", photos, "--write", tmp_path / "s", "--workers", 0, "--json")
    assert told.exit_code == 0, told.stderr
    measured = find_model(tmp_path / "s")
    assert measured.model["latents"]["mean"] == [c["mean"] for c in json.loads(told.stdout)["channels"]]
    assert measured.quantized


def test_without_an_output_it_only_tells(flexvae, trained, data, tmp_path):
    ended = flexvae("quantize", trained, data, "--bits", 6, "--max-drop", "20dB", "--workers", 0, "--limit", 2)
    assert ended.exit_code == 0, ended.stderr
    assert re.search(r"layer +\|code +\|bits +\|bytes before +\| +after +\|drop \(dB\)", ended.stdout)
    assert f"on 2 images of {data}" in ended.stdout
    assert "all weights" in ended.stdout


def test_a_plan_that_costs_too_much_is_refused(flexvae, trained, data, tmp_path):
    said = quantized(flexvae, trained, data, "--bits", 2, "-o", tmp_path / "b", code=Exit.USAGE)["said"]
    assert re.search(r"error: 2 bits cost [0-9.]+ dB of PSNR, more than the 0\.3 dB allowed", said)
    assert "take more bits, or --bits auto" in said
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--bits", "1"], "--bits wants a number from 2 to 16, or auto, not '1'"),
        (["--bits", "17"], "not '17'"),
        (["--bits", "few"], "not 'few'"),
        (["--max-drop", "0dB"], "--max-drop wants decibels above 0, as in 0.3dB, not '0dB'"),
        (["--max-drop", "-1"], "not '-1'"),
    ],
)
def test_wrong_options_are_named_before_anything_is_read(flexvae, tmp_path, options, said):
    ended = flexvae("quantize", tmp_path / "none", tmp_path / "none", *options)
    assert ended.exit_code == Exit.USAGE
    assert said in ended.stderr


def test_wrong_inputs(flexvae, trained, data, eight, tmp_path):
    assert "no such model" in quantized(flexvae, tmp_path / "none", data, code=Exit.MODEL)["said"]
    assert "no such file" in quantized(flexvae, trained, tmp_path / "none", code=Exit.DATA)["said"]
    assert "is there already" in quantized(flexvae, trained, data, "-o", data, code=Exit.USAGE)["said"]
    assert "has weights of few bits already" in quantized(flexvae, eight[0], data, code=Exit.USAGE)["said"]


def test_a_net_without_weights_is_refused(flexvae, make_model, data, tmp_path):
    path = make_model(tmp_path / "run", encoder=["MaxP_4"], bottleneck="None", decoder=["UpS_4", "GN_1_3"])
    assert "has no weights to quantize" in quantized(flexvae, path, data, code=Exit.USAGE)["said"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda about: about["tensors"].update({"encoder.0.weight": {"bits": 40, "shape": [3]}}), "neither bits nor"),
        (
            lambda about: about["tensors"].update({"encoder.0.weight": {"bits": 8, "shape": [1 << 40, 9]}}),
            "has not the",
        ),
        (lambda about: about["tensors"]["encoder.0.weight"].update(bits=7), "has not the codes that encoder.0.weight"),
        (lambda about: about["tensors"].pop("encoder.0.weight"), "lacks encoder.0.weight"),
        (lambda about: about.update(tensors=[]), "garbles 'quantized'"),
    ],
)
def test_a_description_that_lies_is_refused(eight, tmp_path, change, said):
    shutil.copytree(eight[0], tmp_path / "b")
    content = json.loads((tmp_path / "b/model.json").read_text())
    content.pop("seal")
    change(content["quantized"])
    (tmp_path / "b/model.json").write_bytes(json_bytes({**content, "seal": seal_of(content)}))
    with pytest.raises(ModelError, match=re.escape(said)):
        load_model(tmp_path / "b")
