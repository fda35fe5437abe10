"""Structure files: what they say, and what is said of those that are wrong."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from flexvae_cli.errors import Problem, UsageError
from flexvae_cli.plugins import installed
from flexvae_cli.structure import Leaf, Sum, bind_code, parse_structure, read_structure

ROOT = Path(__file__).parents[1]
SEED_ENCODER = """
[
  "C2d_3_128_3_1_1",
  "2*VAERB_128_128",
  "C2d_128_128_3_4_0",
  "VAERB_128_256",
  "VAERB_256_256",
  "C2d_256_256_3_4_0",
  "3*VAERB_256_256",
  "VAEA_256",
  "VAERB_256_256",
  "GN_32_256",
  "SiLU",
  "C2d_256_8_3_1_1",
  "C2d_8_8_1_1_0"
]
"""
SEED_DECODER = """
[
  "C2d_4_4_1_1_0",
  "C2d_4_512_3_1_1",
  "VAERB_512_512",
  "VAEA_512",
  "4*VAERB_512_512",
  "UpS_4",
  "C2d_512_512_3_1_1",
  "VAERB_512_256",
  "2*VAERB_256_256",
  "UpS_4",
  "C2d_256_256_3_1_1",
  "VAERB_256_128",
  "2*VAERB_128_128",
  "GN_32_128",
  "SiLU",
  "C2d_128_3_3_1_1"
]
"""


@pytest.fixture
def registry():
    return installed().registry


def codes(items) -> list:
    return [i.bound.code if isinstance(i, Leaf) else [codes(i.body), codes(i.shortcut)] for i in items]


def problems_of(document, registry) -> list[str]:
    with pytest.raises(UsageError) as caught:
        parse_structure(document, registry, "net.json")
    return [f"{p.where}: {p.what}" for p in caught.value.problems]


@pytest.mark.parametrize(("name", "text"), [("encoder", SEED_ENCODER), ("decoder", SEED_DECODER)])
def test_the_seed_s_nets_are_shipped_as_they_are(name, text):
    assert json.loads((ROOT / f"configs/structures/{name}.json").read_text()) == json.loads(text)


def test_repeats_groups_and_residuals_expand(registry):
    document = [
        "2*GN_2_4",
        {"repeat": 2, "layers": ["SiLU", {"repeat": 2, "layers": ["UpS_2"]}]},
        {"residual": ["2*SiLU"], "shortcut": ["C2d_4_4_1"]},
        {"residual": ["SiLU"]},
    ]
    items = parse_structure(document, registry, "net.json").expanded()
    assert codes(items) == [
        *["GN_2_4"] * 2,
        *["SiLU", "UpS_2", "UpS_2"] * 2,
        [["SiLU", "SiLU"], ["C2d_4_4_1"]],
        [["SiLU"], []],
    ]
    assert [i.key for i in items] == [str(n) for n in range(10)]
    assert isinstance(items[8], Sum)
    assert [i.key for i in items[8].body + items[8].shortcut] == ["8.body.0", "8.body.1", "8.shortcut.0"]
    assert items[8].body[1].where == "net.json[2].residual[0]"


def test_an_mstruct_file_of_the_original_project_loads_as_it_is(tmp_path, registry):
    path = tmp_path / "VAE_encoder.mstruct"
    path.write_text(SEED_ENCODER)
    assert len(read_structure(path, registry).expanded()) == 16


def test_all_problems_of_a_file_come_at_once(registry):
    document = ["C2d_3_64_3_1_1", "Foo_3", 3, {"repeat": 0, "layers": ["SiLU"]}, "GN_30_128", {"residul": []}, "0*SiLU"]
    assert problems_of(document, registry) == [
        "net.json[1]: unknown layer 'Foo'",
        "net.json[2]: an entry is a code or an object, not a number",
        "net.json[3]: repeat wants a whole number from 1 to 4096, not 0",
        "net.json[4]: GN: num-groups 30 does not divide num-channels 128",
        "net.json[5]: 'residul' is no key of an entry; did you mean 'residual'?",
        "net.json[6]: a layer cannot be repeated 0 times",
    ]


@pytest.mark.parametrize(
    ("document", "what"),
    [
        ({}, "net.json: a structure is a JSON list of codes, not an object"),
        ("SiLU", "net.json: a structure is a JSON list of codes, not a text"),
        (None, "net.json: a structure is a JSON list of codes, not null"),
        ([], "net.json: an empty list: a net has at least one layer"),
        ([{"repeat": 2, "layers": []}], "net.json[0].layers: an empty list: a net has at least one layer"),
        ([{"repeat": True, "layers": ["SiLU"]}], "net.json[0]: repeat wants a whole number from 1 to 4096, not True"),
        ([{"residual": "SiLU"}], "net.json[0].residual: wants a list of codes, not a text"),
        ([{"repeat": 2}], "net.json[0]: an object with repeat is no entry"),
        (
            [{"repeat": 2, "layers": ["SiLU"], "residual": []}],
            "net.json[0]: an object with layers, repeat, residual is no entry",
        ),
        ([{"repeat": 4096, "layers": ["5*SiLU"]}], "net.json: expands to 20,480 layers; the most is 20,000"),
        ([{"residual": [["SiLU"]]}], "net.json[0].residual[0]: an entry is a code or an object, not a list"),
    ],
)
def test_what_is_no_structure_is_refused(document, what, registry):
    assert what in problems_of(document, registry)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b'["SiLU",]', "net.json:1:9: is not JSON: "),
        (b'["SiLU"', "net.json:1:8: is not JSON: "),
        (b"", "net.json:1:1: is not JSON: expecting value"),
        (b"\xff\xfe[\x00]\x00", "net.json: is UTF-16; save it as UTF-8"),
        (b'["\xe4"]', "net.json:1:3: is not UTF-8"),
        (b"[NaN]", "net.json: holds NaN, which is no number in JSON"),
        (b'[{"repeat": 1, "repeat": 2, "layers": ["SiLU"]}]', "net.json: gives the key 'repeat' twice"),
        (b"[" * 100_000, "net.json: is nested deeper than 64 levels"),
        (b"[" * 80 + b"]" * 80, "net.json: is nested deeper than 64 levels"),
        (b"[" + b"1" * 5000 + b"]", "net.json: holds a number that is too long"),
        (b" " * 5_000_000, "net.json: is 5,000,000 bytes large; the most is 4,194,304"),
    ],
)
def test_what_is_no_json_is_refused_with_its_place(content, what, tmp_path, registry):
    path = tmp_path / "net.json"
    path.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        read_structure(path, registry, "net.json")
    assert str(caught.value).startswith(what)


def test_files_that_are_none(tmp_path, registry):
    for path, what in [(tmp_path, "is a folder, not a file"), (tmp_path / "none.json", "no such file")]:
        with pytest.raises(UsageError, match=what):
            read_structure(path, registry)


def test_a_byte_order_mark_is_no_problem(tmp_path, registry):
    path = tmp_path / "net.json"
    path.write_bytes(b'\xef\xbb\xbf["SiLU"]\r\n')
    assert codes(read_structure(path, registry).expanded()) == ["SiLU"]


def test_the_name_of_a_plugin_that_brings_an_unknown_code_is_told(registry, monkeypatch):
    monkeypatch.setattr("flexvae_cli.registry.known_elsewhere", lambda: {"Sine": "flexvae-layers-sine"})
    with pytest.raises(UsageError) as caught:
        parse_structure(["Sine_3", "sine"], registry, "net.json")
    assert [p.hint for p in caught.value.problems] == [
        "'Sine' comes with a plugin: pip install flexvae-layers-sine"
    ] * 2


def test_mutated_files_never_raise_anything_else(registry, tmp_path, fuzz_factor):
    """Deletions, insertions and repetitions in a real file: a structure comes back, or a usage error with a place."""
    draw = random.Random(0)
    odd = [
        '"',
        "[",
        "]",
        "{",
        "}",
        ",",
        ":",
        "*",
        "_",
        "=",
        "\\",
        "\0",
        "é",
        "٣",
        "1e400",
        "-",
        "null",
        "\ud800",
        "9" * 30,
    ]
    seed = json.dumps([*json.loads(SEED_ENCODER), {"repeat": 2, "layers": ["SiLU"]}, {"residual": ["UpS_2"]}])
    path = tmp_path / "net.json"
    for _ in range(20_000 * fuzz_factor):
        text = seed
        for _ in range(draw.randint(1, 4)):
            at = draw.randrange(len(text))
            text = text[:at] + draw.choice(["", draw.choice(odd)]) + text[at + draw.randint(0, 3) :]
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        places = ["net.json"]
        try:
            read_structure(path, registry, "net.json").expanded()
        except UsageError as error:
            places = [p.where for p in error.problems]
        assert places
        assert all(place.startswith("net.json") for place in places)


@pytest.mark.parametrize(("kind", "code"), [("loss", "2*mse"), ("bottleneck", "2*KL"), ("loss", "1*l1")])
def test_a_layer_alone_can_be_repeated(kind, code, registry):
    problems: list[Problem] = []
    assert bind_code(code, kind, registry, "here", problems, {}) is None
    assert [(p.what, p.span) for p in problems] == [(f"there is one {kind}; leave the count out", (0, 2))]
    assert bind_code(code[2:], kind, registry, "here", problems, {}) is not None
