"""A net as data: parts that fit, sizes that fit, and what a model file says of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flexvae_cli.api import layer, same
from flexvae_cli.errors import ModelError, UsageError
from flexvae_cli.net import from_description, make_net
from flexvae_cli.plugins import installed
from flexvae_cli.registry import Registered, Registry
from flexvae_cli.structure import parse_structure

ROOT = Path(__file__).parents[1]


def net(encoder, decoder, shape=(3, 32, 32), bottleneck="KL"):
    registry = installed().registry
    parts = [parse_structure(d, registry, f"{n}.json") for n, d in (("encoder", encoder), ("decoder", decoder))]
    return make_net(parts[0], bottleneck, parts[1], shape, registry, None)


def seed_net():
    return net(
        *(json.loads((ROOT / f"configs/structures/{n}.json").read_text()) for n in ("encoder", "decoder")),
        (3, 256, 256),
    )


SMALL = ["C2d_3_32_4_4", "C2d_32_8_1"], ["C2d_4_32_1", "UpS_4", "C2d_32_3_3_1_1"]


def test_the_seed_s_nets_have_the_parameters_that_they_have():
    encoder, bottleneck, decoder = seed_net().checked()
    assert encoder.parameters == 8_440_272
    assert decoder.parameters == 32_965_399
    assert bottleneck.takes == (8, 16, 16)
    assert bottleneck.gives == (4, 16, 16)
    assert decoder.gives == (3, 256, 256)
    assert 2 * encoder.macs == pytest.approx(99.0e9, rel=0.01)
    assert 2 * decoder.macs == pytest.approx(284.2e9, rel=0.01)


def test_a_stride_larger_than_its_kernel_is_noted():
    encoder = seed_net().checked()[0]
    noted = {row.key: row.notes for row in encoder.rows if row.notes}
    assert set(noted) == {"3", "6"}
    assert "the stride 4 is larger than the kernel 3" in noted["3"][0]


@pytest.mark.parametrize(
    ("encoder", "decoder", "bottleneck", "what"),
    [
        (
            ["C2d_3_64_3_1_1", "VAERB_128_128", "C2d_128_8_1"],
            SMALL[1],
            "KL",
            "encoder.json[1]: VAERB_128_128 takes 128 channels, but 64 come in from encoder.json[0] C2d_3_64_3_1_1",
        ),
        (["C2d_1_8_4_4"], SMALL[1], "KL", "encoder.json[0]: C2d_1_8_4_4 takes 1 channels, but 3 come in with the data"),
        (["C2d_3_7_4_4"], SMALL[1], "KL", "model.bottleneck: KL takes an even number of channels"),
        (
            ["C2d_3_6_4_4"],
            SMALL[1],
            "KL",
            "decoder.json[0]: C2d_4_32_1 takes 4 channels, but 3 come in from the bottleneck KL",
        ),
        (["C2d_3_8_2_2"], SMALL[1], "KL", "decoder.json: the decoder gives 3x64x64, the encoder takes 3x32x32"),
        (
            ["C2d_3_8_64"],
            SMALL[1],
            "KL",
            "encoder.json[0]: C2d_3_8_64 the window of 64x64 does not fit the input of 32x32",
        ),
        (["C2d_3_8_4x4x4"], SMALL[1], "KL", "encoder.json[0]: C2d_3_8_4x4x4 the size 4x4x4 has 3 axes, the data has 2"),
        (
            [{"residual": ["C2d_3_8_4_4"]}],
            SMALL[1],
            "KL",
            "encoder.json[0]: the residual gives 8x8x8, its shortcut 3x32x32; they must be the same to be added",
        ),
        (
            ["C2d_3_16_1", {"residual": ["C2d_16_8_1"], "shortcut": ["C2d_4_8_1"]}],
            SMALL[1],
            "KL",
            "encoder.json[1].shortcut[0]: C2d_4_8_1 takes 4 channels, but 16 come in from encoder.json[0] C2d_3_16_1",
        ),
        (
            [{"residual": ["SiLU", "C2d_3_8_1"], "shortcut": ["C2d_4_8_1"]}],
            SMALL[1],
            "KL",
            "encoder.json[0].shortcut[0]: C2d_4_8_1 takes 4 channels, but 3 come in with the data",
        ),
        (
            [{"residual": ["SiLU"]}, "C2d_4_8_1"],
            SMALL[1],
            "KL",
            "encoder.json[1]: C2d_4_8_1 takes 4 channels, but 3 come in from the residual encoder.json[0]",
        ),
    ],
)
def test_parts_that_do_not_fit_are_named(encoder, decoder, bottleneck, what):
    with pytest.raises(UsageError) as caught:
        net(encoder, decoder, bottleneck=bottleneck).checked()
    assert what in str(caught.value)


def test_several_mismatches_come_at_once():
    with pytest.raises(UsageError) as caught:
        net(["C2d_3_64_4_4", "VAERB_32_32", "C2d_64_8_1"], ["C2d_8_32_1", "UpS_4", "C2d_32_3_1"]).checked()
    assert [p.where for p in caught.value.problems] == ["encoder.json[1]", "encoder.json[2]", "decoder.json[0]"]


@pytest.mark.parametrize("code", ["Kl", "KL_3", "2*KL", "1*KL", "SiLU", ""])
def test_a_bottleneck_that_is_none(code):
    with pytest.raises(UsageError, match=r"model\.bottleneck"):
        net(*SMALL, bottleneck=code)


def test_sizes_are_rounded_up_to_what_comes_back():
    assert net(*SMALL).fitting((30, 33)) == (32, 36)
    assert seed_net().fitting((300, 517)) == (304, 528)
    overlapping = net(["C2d_3_8_3_2_0"], ["C2d_4_4_1", "UpS_2", "C2d_4_3_3_1_1"], (3, 33, 33))
    with pytest.raises(UsageError, match="no size from 33 up"):
        overlapping.fitting((33, 33))


def test_a_description_is_the_way_back():
    description = json.loads(json.dumps(net(*SMALL).describe()))
    again = from_description(description, installed().registry, "model")
    assert again.describe() == description
    assert again.latent_shape == (4, 8, 8)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"input": [3]}, "not a shape"),
        ({"input": [3, "x"]}, "not a shape"),
        ({"input": None}, "lacks or garbles"),
        ({"encoder": {}}, "a structure is a JSON list"),
        ({"bottleneck": 3}, "lacks or garbles"),
        (
            {"encoder": ["Sine_3"], "plugins": {"flexvae-sine": "1.2"}},
            "the model was made with flexvae-sine 1.2, which is not installed",
        ),
        ({"plugins": ["flexvae"]}, "is not a table of names"),
        ({"plugins": {"flexvae": 1}}, "is not a table of names"),
        ({"prefer": 3}, "is not a table of names"),
    ],
)
def test_a_description_that_is_wrong_is_a_model_error(change, what):
    with pytest.raises(ModelError) as caught:
        from_description({**net(*SMALL).describe(), **change}, installed().registry, "model")
    assert what in str(caught.value)
    for key in ("encoder", "decoder", "bottleneck", "input", "plugins"):
        description = net(*SMALL).describe()
        del description[key]
        with pytest.raises(ModelError):
            from_description(description, installed().registry, "model")


def snake(distribution: str, version: str, name: str = "Snake") -> Registered:
    return Registered(layer(name, trace=same)(lambda: None), distribution, version)


ZOO, AUDIO, BARK = snake("zoo", "1.2"), snake("audio", "3"), snake("audio", "3", "Bark")


def registry_of(*others: Registered) -> Registry:
    core = installed().registry
    return Registry([*(e for kind in ("layer", "bottleneck") for e in core.all(kind) if e.distribution == "flexvae"),
                     *others])  # fmt: skip


def described(codes: list[str], registry: Registry) -> dict:
    parts = [parse_structure([*codes, *d], registry, "n") for d in SMALL]
    return json.loads(json.dumps(make_net(parts[0], "KL", parts[1], (3, 32, 32), registry, None).describe()))


def test_a_model_keeps_the_layers_of_the_plugin_that_it_was_made_with():
    description = described(["Snake"], registry_of(ZOO))
    assert description["plugins"]["zoo"] == "1.2"
    again = from_description(description, registry_of(AUDIO, ZOO), "model")
    assert again.encoder.expanded()[0].bound.spec is ZOO.spec
    assert again.describe() == description


def test_a_model_never_takes_the_layers_of_another_plugin():
    with pytest.raises(ModelError) as caught:
        from_description(described(["Snake"], registry_of(ZOO)), registry_of(AUDIO), "model")
    (problem,) = caught.value.problems
    assert problem.what.startswith("the model was made with zoo 1.2, which is not installed")
    assert problem.hint.startswith("pip install zoo;")


def test_a_code_that_the_model_s_plugin_no_longer_brings():
    description = described(["Snake"], registry_of(ZOO))
    here = registry_of(snake("zoo", "2", "Newt"), AUDIO)
    with pytest.raises(
        ModelError, match=r"model: encoder\[0\]: the layer 'Snake' comes with none of the plugins .*zoo 1\.2"
    ):
        from_description(description, here, "model")


def test_a_model_made_with_a_preference_is_used_without_a_config():
    everything = registry_of(ZOO, AUDIO, BARK)
    for codes in (["Snake"], ["Snake", "Bark"]):
        description = described(codes, everything.preferring({"Snake": "zoo"}))
        again = from_description(description, everything, "model")
        assert again.encoder.expanded()[0].bound.spec is ZOO.spec
        assert again.describe() == description
