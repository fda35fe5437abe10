"""Trained weights carried over to edited structures: what can keep its function keeps it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from runs import settings_of
from torch import nn

from flexvae_cli.api import Shape
from flexvae_cli.engine.build import build_item, build_layer, meta_step
from flexvae_cli.engine.grafting.graft import graft, trained
from flexvae_cli.engine.grafting.identity import make_identity
from flexvae_cli.engine.grafting.matching import match
from flexvae_cli.engine.grafting.moved import moved, samples_for
from flexvae_cli.engine.grafting.tensors import delta_, first, fitted, halves
from flexvae_cli.engine.model import Model
from flexvae_cli.engine.modelfiles import find_model
from flexvae_cli.net import make_net
from flexvae_cli.plugins import installed
from flexvae_cli.structure import parse_structure

CONVOLUTIONS = ["C2d_3_8_3_2_1", "SiLU", "C2d_8_8_3_1_1", "C2d_8_4_3_2_1"]
DECODER = ["C2d_2_8_3_1_1", "SiLU", "UpS_4", "C2d_8_3_3_1_1"]


@pytest.fixture(scope="module")
def old(tmp_path_factory, make_model) -> Model:
    return trained(
        find_model(make_model(tmp_path_factory.mktemp("old") / "run", encoder=CONVOLUTIONS, decoder=DECODER))
    )


def grafted(old: Model, encoder, decoder=DECODER, shape: Shape = (3, 16, 16), bottleneck: str = "KL"):
    registry = installed().registry
    parts = [parse_structure(part, registry, name) for part, name in ((encoder, "encoder"), (decoder, "decoder"))]
    net = make_net(parts[0], bottleneck, parts[1], shape, registry, meta_step)
    net.checked()
    vae, told = graft(old, net, 0)
    new = Model(vae, net, old.description, old.path, "")
    x = torch.rand(2, *old.net.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return new, told, moved(old, new, x)


def test_what_is_kept_does_what_it_did(old):
    new, told, moves = grafted(old, CONVOLUTIONS)
    assert {each.action for each in told} == {"kept"}
    assert all(each.carried == each.numbers for each in told)
    assert [each.distance for each in moves.values()] == [0.0, 0.0]
    for name, tensor in old.vae.state_dict().items():
        assert torch.equal(tensor, new.vae.state_dict()[name]), name


@pytest.mark.parametrize(
    ("encoder", "new"),
    [
        ([*CONVOLUTIONS[:3], "C2d_8_8_3_1_1", CONVOLUTIONS[3]], "C2d_8_8_3_1_1"),
        ([*CONVOLUTIONS[:3], "RB_8_8_num-groups=4", CONVOLUTIONS[3]], "RB_8_8_num-groups=4"),
        ([*CONVOLUTIONS[:3], "ViT_8_2", CONVOLUTIONS[3]], "ViT_8_2"),
        ([*CONVOLUTIONS[:3], "CNX_8", CONVOLUTIONS[3]], "CNX_8"),
        ([*CONVOLUTIONS[:3], {"residual": ["GN_4_8", "SiLU", "C2d_8_8_3_1_1"]}, CONVOLUTIONS[3]], "residual"),
        ([*CONVOLUTIONS[:3], {"residual": ["C2d_8_8_1", "RMSN_8_bias=true"]}, CONVOLUTIONS[3]], "residual"),
        ([*CONVOLUTIONS[:3], "Drop_0.2", CONVOLUTIONS[3]], "Drop_0.2"),
        (["C2d_3_8_3_2_1", "SiLU", "C2d_8_8_3_1_1", "C2d_8_12_3_1_1", "C2d_12_4_3_2_1"], "C2d_8_12_3_1_1"),
    ],
    ids=str,
)
def test_deeper_by_layers_that_change_nothing_yet(old, encoder, new):
    made, told, moves = grafted(old, encoder)
    (fresh,) = [each for each in told if each.action == "identity"]
    assert (fresh.code, fresh.carried) == (new, 0)
    assert all(each.distance <= 1e-6 for each in moves.values())
    made.vae.train()
    made.vae(torch.rand(2, 3, 16, 16)).output.square().sum().backward()
    inserted = made.vae.encoder[int(fresh.key)]
    assert not list(inserted.parameters()) or any(p.grad.any() for p in inserted.parameters())


@pytest.mark.parametrize(
    ("encoder", "decoder", "bottleneck"),
    [
        (["C2d_3_16_3_2_1", "SiLU", "C2d_16_24_3_1_1", "C2d_24_4_3_2_1"], DECODER, "KL"),
        (CONVOLUTIONS, ["C2d_2_12_3_1_1", "SiLU", "UpS_4", "C2d_12_3_5_1_2"], "KL"),
        # means and log-variances are a half each, however many there are
        ([*CONVOLUTIONS[:3], "C2d_8_10_3_2_1"], ["C2d_5_8_3_1_1", *DECODER[1:]], "KL"),
    ],
    ids=["encoder", "decoder and kernel", "latent"],
)
def test_wider_is_the_same_function(old, encoder, decoder, bottleneck):
    made, told, moves = grafted(old, encoder, decoder, bottleneck=bottleneck)
    assert {each.action for each in told} == {"kept", "changed"}
    assert all(each.distance < 1e-6 for each in moves.values())
    x = torch.rand(1, 3, 16, 16)
    assert torch.allclose(made(x), old(x), atol=1e-5)


def test_narrower_keeps_the_first_channels_and_says_how_far_it_moved(old):
    made, told, moves = grafted(old, ["C2d_3_4_3_2_1", "SiLU", "C2d_4_8_3_1_1", "C2d_8_4_3_2_1"])
    assert torch.equal(made.vae.encoder[0].weight, old.vae.encoder[0].weight[:4])
    assert told[0].notes == ("out-channels 8 -> 4",)
    assert all(0.01 < each.distance < 10 for each in moves.values())


def test_what_is_dropped_and_what_is_new_is_named(old):
    _, told, moves = grafted(old, ["C2d_3_8_3_2_1", "GN_2_8", "C2d_8_4_3_2_1"])
    done = {(each.code or each.was): each for each in told if each.part == "encoder"}
    assert done["SiLU"].action == done["C2d_8_8_3_1_1"].action == "dropped"
    assert done["GN_2_8"].action == "new"
    assert done["GN_2_8"].notes == ("fresh weights", "changes what comes through")
    assert all(each.distance > 0 for each in moves.values())


def test_the_seed_decides_what_is_new(old):
    encoder = ["C2d_3_8_3_2_1", "C2d_8_8_3_2_1", "C2d_8_4_3_1_1"]
    first_time, second = (grafted(old, encoder)[0].vae.state_dict() for _ in range(2))
    assert all(torch.equal(first_time[name], second[name]) for name in first_time)


def test_a_net_for_volumes_does_to_each_slice_what_it_did(old):
    made, told, moves = grafted(
        old,
        ["C3d_3_8_3_1x2x2_1", "SiLU", "C3d_8_8_3_1_1", "C3d_8_4_3_1x2x2_1"],
        ["C3d_2_8_3_1_1", "SiLU", "UpS_1x4x4", "C3d_8_3_3_1_1"],
        (3, 4, 16, 16),
    )
    assert "C2d -> C3d" in told[0].notes[0]
    assert all(each.distance < 1e-6 for each in moves.values())
    volume = torch.rand(1, 3, 4, 16, 16)
    slices = torch.stack([old(volume[:, :, n]) for n in range(4)], dim=2)
    assert torch.allclose(made(volume), slices, atol=1e-5)


def test_a_block_that_changes_its_channels_passes_on_what_it_had(tmp_path, make_model):
    decoder = ["C2d_2_32_1", "VAERB_32_32", "UpS_4", "C2d_32_3_1"]
    old = trained(find_model(make_model(tmp_path / "run", decoder=decoder)))
    made, told, _ = grafted(
        old, ["C2d_3_8_3_2_1", "SiLU", "C2d_8_4_3_2_1"], [decoder[0], "VAERB_32_64", "UpS_4", "C2d_64_3_1"]
    )
    (block,) = [each for each in told if each.was == "VAERB_32_32"]
    assert block.action == "changed"
    assert torch.equal(made.vae.decoder[1].shortcut.weight[:32, :, 0, 0], torch.eye(32))


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_a_delta_is_the_identity(axes):
    module = getattr(nn, f"Conv{axes}d")(4, 4, 3, padding=1, groups=2)
    assert delta_(module)
    x = torch.randn(2, 4, *(6, 5, 4)[:axes])
    assert torch.equal(module(x), x)
    assert not delta_(getattr(nn, f"Conv{axes}d")(4, 4, 3, stride=2))


def test_kernels_grow_around_what_they_were():
    was, owner = nn.Conv2d(2, 3, (3, 1), padding=(1, 0)), nn.Conv3d(2, 3, (3, 5, 3), padding=(1, 2, 1))
    owner.weight.data = fitted(was.weight.data, owner.weight.data, (was, owner), "weight")
    owner.bias.data = fitted(was.bias.data, owner.bias.data, (was, owner), "bias")
    x = torch.randn(1, 2, 4, 7, 6)
    each = torch.stack([was(x[:, :, n]) for n in range(4)], dim=2)
    assert torch.allclose(owner(x), each, atol=1e-6)


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("normalised", [False, True])
def test_wider_transposed_convolutions_are_the_same_function(axes, normalised):
    make = getattr(nn, f"ConvTranspose{axes}d")
    was, owner = make(2, 3, 4, 2, 1), make(4, 5, 4, 2, 1)
    if normalised:
        was, owner = (nn.utils.parametrizations.weight_norm(each) for each in (was, owner))
    before, result = was.state_dict(), owner.state_dict()
    owner.load_state_dict({n: fitted(before[n], result[n], (was, owner), n.rpartition(".")[2]) for n in result})
    x = torch.randn(1, 4, *(5, 4, 3)[:axes])
    assert torch.allclose(owner(x)[:, :3], was(x[:, :2]), atol=1e-6)
    assert owner(x).isfinite().all()


def test_what_has_other_groups_is_not_carried():
    was, owner = nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3, groups=2)
    assert fitted(was.weight.data, owner.weight.data, (was, owner), "weight") is None
    doubled = nn.Conv2d(8, 8, 3, groups=2)  # its weight has the shape of that of 4 channels in one group
    for name in ("weight", "bias"):
        tensors = [getattr(module, name).data for module in (nn.Conv2d(4, 8, 3), doubled)]
        assert tensors[0].shape == tensors[1].shape
        assert fitted(*tensors, (nn.Conv2d(4, 8, 3), doubled), name) is None
    depthwise = [nn.Conv2d(n, n, 3, groups=n) for n in (4, 6)]
    carried = fitted(depthwise[0].weight.data, depthwise[1].weight.data, tuple(depthwise), "weight")
    assert torch.equal(carried[:4], depthwise[0].weight)


def test_rows():
    assert first(4, 2) == ([0, 1], [0, 1])
    assert halves(4, 6) == ([0, 1, 2, 3], [0, 1, 3, 4])
    assert halves(6, 4) == ([0, 1, 3, 4], [0, 1, 2, 3])


def test_the_diff_prefers_names_then_parameters():
    registry = installed().registry

    def items(*codes):
        return parse_structure(list(codes), registry, "x").expanded()

    old = items("C2d_3_8_3", "SiLU", "C2d_8_8_3", "GN_2_8", "C2d_8_4_3")
    new = items("C2d_3_8_3", "SiLU", "C2d_8_16_3", "C2d_8_8_3", "GN_2_8", "SiLU", "C2d_8_4_5")
    pairs = [(pair.old and pair.old.key, pair.new and pair.new.key) for pair in match(old, new)]
    assert pairs == [("0", "0"), ("1", "1"), (None, "2"), ("2", "3"), ("3", "4"), (None, "5"), ("4", "6")]


def test_residuals_are_matched_inside():
    registry = installed().registry
    old, new = (
        parse_structure([{"residual": body}], registry, "x").expanded()
        for body in (["C2d_8_8_3_1_1", "SiLU"], ["GN_2_8", "C2d_8_8_5_1_2", "SiLU"])
    )
    pairs = [(pair.old and pair.old.key, pair.new and pair.new.key) for pair in match(old, new)]
    assert pairs == [("0", "0"), (None, "0.body.0"), ("0.body.0", "0.body.1"), ("0.body.1", "0.body.2")]


@pytest.mark.parametrize("code", ["SiLU", "GN_2_8", "TAEB_8_8", "C2d_8_8_4_1_1"])
def test_what_cannot_be_the_identity_is_left_as_it_was(code):
    (leaf,) = parse_structure([code], installed().registry, "x").expanded()
    module = build_layer(leaf.bound, "")
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    assert not make_identity(module, (8, 6, 6), 8)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_groups_that_grow_with_the_channels_stay_what_they_were(tmp_path, make_model):
    model = make_model(tmp_path / "run", encoder=["C2d_3_8_3_2_1", "GN_2_8", "SiLU", "C2d_8_4_3_2_1"])
    old = trained(find_model(model))
    _, _, moves = grafted(old, ["C2d_3_16_3_2_1", "GN_4_16", "SiLU", "C2d_16_4_3_2_1"])
    assert moves["latent"].distance < 1e-6
    _, _, moves = grafted(old, ["C2d_3_16_3_2_1", "GN_2_16", "SiLU", "C2d_16_4_3_2_1"])
    assert moves["latent"].distance > 1e-3


def test_weights_that_are_normalised_can_end_in_zeros():
    path = ["SnakeB_4", "C1d_4_4_7_1_3_weight-norm=true", "SnakeB_4", "C1d_4_4_1_weight-norm=true"]
    (item,) = parse_structure([{"residual": path}], installed().registry, "x").expanded()
    module = build_item(item)
    assert make_identity(module, (4, 20), 4)
    x = torch.randn(2, 4, 20)
    assert torch.equal(module(x), x)
    module(x).sum().backward()
    assert any(parameter.grad.any() for parameter in module.parameters())


def test_a_latent_of_another_size_is_not_compared(old):
    encoder = ["C2d_3_8_3_2_1", "SiLU", "C2d_8_8_3_1_1", "C2d_8_4_3_2_1", "MaxP_2"]
    _, _, moves = grafted(old, encoder, ["UpS_2", *DECODER])
    assert moves["latent"].distance is None
    assert moves["latent"].note == "was and is of another size: 2x4x4 and 2x2x2"
    assert moves["reconstruction"].distance > 0


def test_other_channels_of_samples_and_latents_are_compared_as_far_as_they_go(old):
    encoder = ["C2d_4_8_3_2_1", *CONVOLUTIONS[1:3], "C2d_8_6_3_2_1"]
    _, _, moves = grafted(old, encoder, ["C2d_3_8_3_1_1", *DECODER[1:3], "C2d_8_4_3_1_1"], (4, 16, 16))
    assert all(each.distance < 1e-6 for each in moves.values())
    assert moves["latent"].note == "of the first 2 channels, 2 before and 3 now"
    assert moves["reconstruction"].note == "of the first 3 channels, 3 before and 4 now"


def test_sound_with_normalised_weights_is_the_same_function(tmp_path, make_model):
    flags = "weight-norm=true"
    encoder = [f"C1d_1_4_4_2_1_{flags}", "SnakeB_4", f"C1d_4_4_3_1_1_{flags}"]
    decoder = [f"C1d_2_4_3_1_1_{flags}", f"CT1d_4_1_4_2_1_{flags}"]
    old = trained(find_model(make_model(tmp_path / "run", encoder=encoder, decoder=decoder, shape=(1, 32))))
    wider = [f"C1d_1_6_4_2_1_{flags}", "SnakeB_6", f"C1d_6_8_5_1_2_{flags}"]
    _, told, moves = grafted(old, wider, [f"C1d_4_7_3_1_1_{flags}", f"CT1d_7_1_4_2_1_{flags}"], (1, 32))
    assert {each.action for each in told} == {"changed", "kept"}
    assert all(each.distance < 1e-6 for each in moves.values())


def test_the_move_is_measured_on_the_data_of_the_run_where_they_are(tmp_path, make_model, photos):
    run = make_model(tmp_path / "run")
    model = trained(find_model(run))
    drawn, origin = samples_for(model, None, 2, 0, print)
    assert origin == "random numbers"
    assert torch.equal(drawn, samples_for(model, None, 2, 0, print)[0])
    assert not torch.equal(drawn, samples_for(model, None, 2, 1, print)[0])
    (run / "config.json").write_text(json.dumps({"flexvae": "0", "settings": settings_of(run, photos)}))
    samples, origin = samples_for(model, None, 2, 0, print)
    assert (tuple(samples.shape), origin) == ((2, 3, 16, 16), str(photos))


def test_given_data_are_prepared_as_those_of_training_were(tmp_path, make_model):
    clear = np.zeros((20, 24, 4), np.uint8)
    clear[2:18, 4:20, 3] = 255  # black in the middle, and the background around it
    Image.fromarray(clear).save(tmp_path / "clear.png")
    black = {"background": "#000000", "exif": True}
    for name, how, around in (("on-white", {}, 1.0), ("on-black", {"preprocessing": black}, -1.0)):
        model = trained(find_model(make_model(tmp_path / name, shape=(3, 18, 18), **how)))
        (sample,), origin = samples_for(model, str(tmp_path / "clear.png"), 8, 0, print)
        assert origin == str(tmp_path / "clear.png")
        assert tuple(sample.shape) == (3, 18, 18)
        assert sample[:, 1:-1, 1:-1].eq(-1).all()
        assert sample[:, 0].eq(around).all()
    np.save(tmp_path / "a.npy", np.linspace(0, 40, 64, dtype=np.float32).reshape(1, 64))
    reader = {"reader": "arrays", "parameters": {"low": 0.0, "high": 40.0, "channels": "first"}}
    codes = {"encoder": ["C1d_1_4_4_4"], "decoder": ["UpS_4", "C1d_2_1_3_1_1"]}
    model = trained(find_model(make_model(tmp_path / "signals", shape=(1, 32), **codes, preprocessing=reader)))
    ((signal,),), _ = samples_for(model, str(tmp_path / "a.npy"), 8, 0, print)
    assert signal.tolist() == pytest.approx((np.linspace(-1, 1, 64)[16:48]).tolist(), abs=1e-6)
