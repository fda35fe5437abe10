"""Decoders made from encoders: whatever is mirrored traces back to what went in, and what is not is named."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from flexvae_cli.api import LayerSpec, Mirrored, Part, layer, mirrors, same
from flexvae_cli.errors import Problem, UsageError
from flexvae_cli.mirroring import mirror_of
from flexvae_cli.net import Net
from flexvae_cli.plugins import installed
from flexvae_cli.registry import Registered, Registry
from flexvae_cli.structure import parse_structure, read_structure
from flexvae_cli.structure_text import structure_text
from flexvae_cli.tracing import trace

STRUCTURES = Path(__file__).parents[1] / "configs" / "structures"
LAYERS: list[LayerSpec] = [entry.spec for entry in installed().registry.all("layer")]  # type: ignore[misc]
EXAMPLES = [(spec.name, example) for spec in LAYERS for example in spec.examples]
ONE_SIZE = {"AdAvgP", "AdMaxP"}
UPSAMPLINGS = ("nearest", "pixel-shuffle", "transposed")


def mirrored(document: list[Any], shape: tuple[int, ...], bottleneck: str = "None", **options: Any) -> Net:
    registry = options.pop("registry", installed().registry)
    return mirror_of(parse_structure(document, registry, "e.json"), bottleneck, shape, registry, None, **options)


def goes_back(net: Net) -> None:
    """Whether a sample comes back as large as it went in, by a trace that owes nothing to the one that was checked."""
    problems: list[Any] = []
    encoded = trace(net.encoder.expanded(), net.shape, problems).gives
    halved = encoded[0] // 2 if net.bottleneck.code == "KL" else encoded[0]
    assert trace(net.decoder.expanded(), (halved, *encoded[1:]), problems).gives == net.shape
    assert not problems


@pytest.mark.parametrize("spec", LAYERS, ids=lambda spec: spec.name)
def test_every_layer_that_ships_says_what_mirrors_it(spec):
    assert spec.mirror is not None


@pytest.mark.parametrize("upsampling", UPSAMPLINGS)
@pytest.mark.parametrize(("name", "example"), EXAMPLES, ids=lambda each: getattr(each, "code", ""))
def test_an_example_of_a_layer_is_mirrored_or_named(name, example, upsampling):
    """The examples of all docstrings: some lose rows for good, and are refused with what to write."""
    try:
        last = f"C{len(example.takes) - 1}d_{example.gives[0]}_{example.gives[0]}_1"
        net = mirrored([example.code, last], example.takes, upsampling=upsampling)
    except UsageError as error:
        (problem,) = error.problems
        assert problem.where in ("e.json[0]", "e.json")
        assert problem.hint
        assert name in ONE_SIZE or name.startswith("Pad") or "_" in example.code, problem
        return
    goes_back(net)


def random_encoder(rng: random.Random, axes: int) -> tuple[list[Any], tuple[int, ...]]:
    """Examples of layers, one behind the other, with convolutions where the channels do not fit."""
    start = (rng.choice([1, 2, 3]), *((48, 40, 24)[axis] * (8 if axes == 1 else 1) for axis in range(axes)))
    document, shape = list[Any](), start
    fitting = [e for name, e in EXAMPLES if len(e.takes) == axes + 1 and name not in ONE_SIZE]
    for example in rng.sample(fitting, 10):
        added = [] if example.takes[0] == shape[0] else [f"C{axes}d_{shape[0]}_{example.takes[0]}_1"]
        added.append(example.code)
        if rng.random() < 0.3 and example.takes == example.gives:
            added[-1:] = [rng.choice([f"2*{example.code}", {"residual": [example.code]}])]
        padded = "Pad" in f"{document[-1:]}{added}"
        if rng.random() < 0.2 and not padded:
            added = [{"repeat": 1, "layers": added}]
        if example.code.startswith("Pad"):
            added.append(f"C{axes}d_{example.gives[0]}_3_3_2")
        problems: list[Any] = []
        items = parse_structure([*document, *added], installed().registry, "e.json").expanded()
        after = trace(items, start, problems)
        if not problems and min(after.gives[1:]) > 3 and max(after.gives[1:]) < 999:
            document, shape = [*document, *added], after.gives
    return [*document, f"C{axes}d_{shape[0]}_8_3_1_1"], start


@pytest.mark.parametrize("seed", range(8))
def test_random_encoders_come_back(seed, fuzz_factor):
    rng, tried, done, refused = random.Random(seed), 0, 0, list[Problem]()
    for _ in range(2 * fuzz_factor):
        document, shape = random_encoder(rng, rng.choice([1, 2, 3]))
        tried += 1
        try:
            net = mirrored(document, shape, rng.choice(["KL", "None"]), upsampling=rng.choice(UPSAMPLINGS))
        except UsageError as error:
            refused += error.problems
            continue
        goes_back(net)
        done += 1
    assert done >= tried / 2
    assert all("e.json" in problem.where and problem.hint for problem in refused), refused


SEED = """[
  "C2d_4_8_1",
  "C2d_8_256_3_1_1",
  "GN_32_256",
  "SiLU",
  "VAERB_256_256",
  "VAEA_256",
  "3*VAERB_256_256",
  "UpS_4",
  "C2d_256_256_3_1_1",
  "VAERB_256_256",
  "VAERB_256_128",
  "UpS_4",
  "C2d_128_128_3_1_1",
  "2*VAERB_128_128",
  "C2d_128_3_3_1_1"
]
"""


def test_the_mirror_of_the_first_encoder():
    encoder = read_structure(STRUCTURES / "encoder.json", installed().registry)
    net = mirror_of(encoder, "KL", (3, 256, 256), installed().registry, None)
    assert structure_text(net.decoder.document) == SEED
    assert net.shape == (3, 256, 256)


OWN = {  # what an encoder takes where that is no photograph
    "oobleck": (2, 16_384),
    "audio": (1, 1024),
    "3d": (1, 32, 32, 32),
    "volume": (1, 32, 32, 32),
    "grey": (1, 48, 48),
    "multichannel": (4, 48, 48),
}


@pytest.mark.parametrize("upsampling", UPSAMPLINGS)
@pytest.mark.parametrize("path", sorted(STRUCTURES.glob("*encoder.json")), ids=lambda path: path.stem)
def test_every_encoder_that_ships_is_mirrored(path, upsampling):
    shape = next((shape for word, shape in OWN.items() if word in path.stem), (3, 64, 96))
    bottleneck = "FSQ_16.8.8" if path.stem.startswith("fsq") else "KL"
    encoder = read_structure(path, installed().registry)
    net = mirror_of(encoder, bottleneck, shape, installed().registry, None, upsampling)
    assert net.shape == shape
    goes_back(net)


@pytest.mark.parametrize(
    ("encoder", "upsampling", "decoder"),
    [
        # neighbours that keep their order, and repeats that stay repeats
        (["C2d_3_8_3_2_1", "GN_4_8", "SiLU"], "nearest", ["GN_4_8", "SiLU", "UpS_2", "C2d_8_3_3_1_1"]),
        (["2*C2d_3_3_3_2_1"], "nearest", [{"repeat": 2, "layers": ["UpS_2", "C2d_3_3_3_1_1"]}]),
        ([{"repeat": 2, "layers": ["RB_32_32", "AB_32"]}], "nearest", [{"repeat": 2, "layers": ["AB_32", "RB_32_32"]}]),
        # a residual around its input stays as it is; one with a shortcut of its own does not
        ([{"residual": ["SiLU", "C2d_3_3_3_1_1_groups=1"]}], "nearest", [{"residual": ["SiLU", "C2d_3_3_3_1_1"]}]),
        (
            [{"residual": ["C2d_3_2_3_1_1", "PU_2"], "shortcut": ["PU_2", "C2d_12_8_1"]}],
            "nearest",
            [{"residual": ["PS_2", "C2d_2_3_3_1_1"], "shortcut": ["C2d_8_12_1", "PS_2"]}],
        ),
        # what stands for a stride
        (["C2d_3_8_4_4"], "nearest", ["UpS_4", "C2d_8_3_3_1_1"]),
        (["C2d_3_8_4_4"], "pixel-shuffle", ["C2d_8_48_3_1_1", "PS_4"]),
        (["C2d_3_8_4_4"], "transposed", ["CT2d_8_3_4_4"]),
        (["C1d_2_4_16_8_4_weight-norm=true"], "transposed", ["CT1d_4_2_16_8_4_weight-norm=true"]),
        (["C2d_3_8_3_1x2_1"], "nearest", ["UpS_1x2", "C2d_8_3_3_1_1"]),
        # windows that are not padded, and a padding of its own in front of one
        (["C2d_3_8_3"], "nearest", ["C2d_8_3_3_1_2"]),
        (["C2d_3_8_3_2"], "nearest", ["UpS_2", "C2d_8_3_3_1_2"]),
        (["Pad2d_0_1_0_1", "SiLU", "C2d_3_8_3_2"], "nearest", ["UpS_2", "C2d_8_3_3_1_1", "SiLU"]),
        (["MaxP_2", "UpS_3"], "nearest", ["MaxP_3", "UpS_2"]),
        (["Rescale_0.5_0.5", "GDN_3"], "nearest", ["GDN_3_inverse=true", "Rescale_2_-1"]),
        (["C2d_3_4_1", "FSQ_5.5.5.5", "C2d_4_8_1"], "nearest", ["C2d_8_4_1", "C2d_4_3_1"]),
    ],
)
def test_what_stands_for_what(encoder, upsampling, decoder):
    first = str(encoder[0])
    shape = (2, 64) if first.startswith("C1d") else (32 if "RB" in first else 3, 24, 24)
    assert mirrored(encoder, shape, upsampling=upsampling).decoder.document == decoder


@pytest.mark.parametrize(
    ("last", "first"),
    [("C2d_3_8_1", "C2d_4_3_1"), ("2*C2d_8_8_1", "C2d_4_8_1"), ("RB_8_8_num-groups=8", "C2d_4_8_1")],
)
def test_the_decoder_takes_what_the_bottleneck_leaves(last, first):
    encoder = [last] if last.startswith("C2d_3") else ["C2d_3_8_1", last]
    assert mirrored(encoder, (3, 8, 8), "KL").decoder.document[0] == first


def test_all_that_cannot_be_mirrored_is_named_at_once():
    bare = layer("Bare", trace=same)(lambda: None)
    wrong = layer("Wrong", trace=same, mirror=lambda original: Mirrored((Part("Absent", {}),)))(lambda: None)
    faulty = layer("Faulty", trace=same, mirror=lambda original: {}["x"])(lambda: None)
    odd = layer("Odd", trace=same, mirror=lambda original: "SiLU")(lambda: None)
    lacking = layer("Lacking", trace=same, mirror=mirrors.inverse("GN"))(lambda: None)
    own = [Registered(spec, "flexvae-foo", "1.0") for spec in (bare, wrong, faulty, odd, lacking)]
    registry = Registry([*installed().registry.all("layer"), *installed().registry.all("bottleneck"), *own])
    document = ["Bare", "AdAvgP_4", {"residual": ["Wrong"], "shortcut": ["Faulty"]}, "Odd", "Lacking", "MaxP_3_2"]
    with pytest.raises(UsageError) as caught:
        mirrored([*document[:1], *document[2:], document[1]], (3, 8, 8), registry=registry)
    said = {problem.where: problem.what for problem in caught.value.problems}
    assert said["e.json[0]"] == "Bare does not say what mirrors it"
    assert "unknown layer 'Absent'" in said["e.json[1].residual[0]"]
    assert "the mirror rule of Faulty" in said["e.json[1].shortcut[0]"]
    assert "'SiLU', not what Mirrored holds" in said["e.json[2]"]
    assert "GN, which would stand for it, needs num_groups, num_channels" in said["e.json[3]"]
    assert "leave rows at the border out" in said["e.json[4]"]
    assert "one size whatever comes in" in said["e.json[5]"]
    assert caught.value.problems[0].hint == "write it by hand: what makes 3x8x8 of 3x8x8"


@pytest.mark.parametrize(
    ("encoder", "said"),
    [
        (["C2d_3_8_1", "Pad2d_1_1_1_1"], "taken up by no convolution"),
        (["Pad2d_1_1_1_1", "PU_2"], "taken up by no convolution"),
        (["2*Pad2d_1_1_1_1", "C2d_3_8_3"], "is repeated, with a padding"),
        (["MaxP_3_1_1"], "nothing that a decoder has a counterpart of"),
        (["C2d_4_8_1"], "takes 4 channels, but 3 come in"),
        (["C2d_3_5_1"], "takes an even number of channels"),
    ],
)
def test_what_does_not_fit_is_refused(encoder, said):
    with pytest.raises(UsageError, match=said):
        mirrored(encoder, (3, 8, 8), "KL")
