"""Quantizers in a net: as a bottleneck and inside it, in training, in half precision, across a resume."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from learners import learner_for, plan_for, samples, state_of
from PIL import Image

from flexvae_cli import load_model
from flexvae_cli.api import LayerSpec
from flexvae_cli.engine.bottlenecks.quantized import QuantizedBottleneck, QuantizedEntry
from flexvae_cli.engine.build import build_vae
from flexvae_cli.engine.data.images import to_tensor
from flexvae_cli.engine.evaluation.rate import bits_of
from flexvae_cli.engine.learner import Learner
from flexvae_cli.engine.parts import restore_parts
from flexvae_cli.engine.scalars import line
from flexvae_cli.plugins import installed

SCENERY = Path(__file__).parents[1] / "flexvae_cli/assets/scenery/train"
QUICK = {"optimizer": {"lr": 3e-3}}
EVERY = [  # of four channels
    "VQ_8_4",
    "VQ_8_4_cosine=true_rotation=true",
    "RVQ_8_4_2_dropout=0.5",
    "RVQ_8_4_1_2",
    "SimVQ_8_4",
    "FSQ_5.5.5.5",
    "RFSQ_5.5.5.5_2_dropout=0.5",
    "LFQ_4",
    "BSQ_4",
    "FQ_4",
]


def net(folder: Path, channels: int, bottleneck: str, inside: str = "") -> dict:
    """`[model]` of a tiny net whose latents have `channels` channels, with `inside` as one of the encoder's entries."""
    entry = f'"C2d_32_4_1", "{inside}", "C2d_4_32_1", ' if inside else ""
    folder.mkdir(exist_ok=True)
    (folder / "e.json").write_text(f'["C2d_3_32_4_4", "SiLU", {entry}"VAERB_32_32", "C2d_32_{channels}_1"]')
    (folder / "d.json").write_text(f'["C2d_{channels}_32_1", "VAERB_32_32", "UpS_4", "C2d_32_3_3_1_1"]')
    return {"encoder": str(folder / "e.json"), "decoder": str(folder / "d.json"), "bottleneck": bottleneck}


@pytest.fixture(scope="module")
def photos() -> torch.Tensor:
    """(n, 3, h, w) in [-1, 1]."""
    import numpy as np

    images = []
    for path in sorted(SCENERY.iterdir())[:12]:
        with Image.open(path) as image:
            images.append(to_tensor(np.asarray(image.convert("RGB").resize((96, 96)))))
    return torch.stack(images)


@pytest.fixture
def photos_folder(tmp_path: Path) -> Path:
    """Three small photographs."""
    (tmp_path / "few").mkdir()
    for path in sorted(SCENERY.iterdir())[:3]:
        with Image.open(path) as image:
            image.convert("RGB").resize((32, 24)).save(tmp_path / "few" / f"{path.stem}.png")
    return tmp_path / "few"


def crops(photos: torch.Tensor, count: int, seed: int) -> torch.Tensor:
    """(count, 3, 16, 16), equal for equal seeds."""
    draw = torch.Generator().manual_seed(seed)
    number = torch.randint(len(photos), (count,), generator=draw).tolist()
    top, left = torch.randint(80, (2, count), generator=draw).tolist()
    return torch.stack([photos[n, :, y : y + 16, x : x + 16] for n, y, x in zip(number, top, left, strict=True)])


@pytest.mark.parametrize(
    ("channels", "bottleneck", "inside"),
    [(4, "VQ_32_4", ""), (3, "FSQ_4.4.4", ""), (6, "LFQ_6", ""), (2, "None", "VQ_32_4"), (4, "RVQ_16_4_2", "FQ_8")],
)
def test_a_tiny_net_learns_and_uses_its_codes(tmp_path, photos, channels, bottleneck, inside):
    learner = learner_for(tmp_path, model=net(tmp_path / "net", channels, bottleneck, inside), **QUICK)
    told = [learner.step(step, [crops(photos, 16, step)]) for step in range(120)]
    first, last = (torch.stack([values["reconstruction"] for values in part]).mean() for part in (told[:5], told[-20:]))
    assert last < 0.6 * first
    with torch.no_grad():
        batch = learner.vae.eval()(crops(photos, 128, 1000))
    name = "bottleneck.usage" if bottleneck != "None" else "encoder.3.usage"
    assert batch.encoded.stats[name] > 0.5
    assert name in told[0]


def test_the_losses_of_all_quantizers_are_summed(tmp_path):
    code = "VQ_8_4_from-data=false"
    learner = learner_for(tmp_path, model=net(tmp_path / "net", 4, code, code))
    batch = learner.vae(samples())
    entry, bottleneck = learner.vae.encoder[3], learner.vae.bottleneck
    assert isinstance(entry, QuantizedEntry)
    assert isinstance(bottleneck, QuantizedBottleneck)
    h = learner.vae.encoder[:3](samples())
    inner = entry.quantizer(h).loss
    outer = bottleneck.quantizer(learner.vae.encoder[3:](h)).loss
    assert inner > 0
    torch.testing.assert_close(batch.encoded.loss, inner + outer)
    assert {name.rpartition(".")[0] for name in batch.encoded.stats} == {"bottleneck", "encoder.3"}


def test_the_sum_is_weighted(tmp_path):
    model = net(tmp_path / "net", 4, "VQ_8_4_from-data=false", "VQ_8_4")
    values = [
        learner_for(tmp_path, model=model, loss={"quantizer_weight": weight}).step(0, [samples()]) for weight in (1, 3)
    ]
    own = values[0]["bottleneck"]
    assert own > 0
    torch.testing.assert_close(values[1]["loss"] - values[0]["loss"], 2 * own)


def test_activations_that_are_computed_again_count_once(tmp_path):
    """The entries are checkpointed; nothing about codes, losses and gradients changes."""
    states = []
    for tables in ({}, {"train": {"activation_checkpointing": ["encoder.3", "encoder.5"]}}):
        model = net(tmp_path / "net", 4, "VQ_8_4", "RVQ_8_4_2_dropout=0.5")
        learner = learner_for(tmp_path / "net", model=model, **tables)
        told = [learner.step(step, samples().split(3)) for step in range(4)]
        states.append((state_of(learner), told))
    for name, tensor in states[0][0].items():
        torch.testing.assert_close(tensor, states[1][0][name], msg=name)
    assert states[0][1][3].keys() == states[1][1][3].keys()


@pytest.mark.parametrize("code", EVERY)
def test_a_restored_learner_goes_on_bit_by_bit(tmp_path, code):
    tables = {"model": net(tmp_path / "net", 4, code, code), "ema": {"decay": 0.9}}
    through = learner_for(tmp_path, **tables)
    for step in range(3):
        through.step(step, samples().split(3))
    weights, training = ({k: v.clone() for k, v in each.items()} for each in (through.weights(), through.tensors()))
    told = [through.step(step, samples().split(3)) for step in range(3, 6)]
    resumed = learner_for(tmp_path, **tables)
    resumed.vae.load_state_dict(weights)
    restore_parts(resumed.parts(), training, tmp_path)
    again = [resumed.step(step, samples().split(3)) for step in range(3, 6)]
    there, here = state_of(through), state_of(resumed)
    assert there.keys() == here.keys()
    assert all(torch.equal(there[name], here[name]) for name in there)
    assert all(torch.equal(x[name], y[name]) for x, y in zip(told, again, strict=True) for name in x)


def test_every_quantizer_is_in_the_matrix():
    quantizers = {entry.spec.name for entry in installed().registry.all("layer") if entry.spec.quantizes}
    assert quantizers == {code.partition("_")[0] for code in EVERY}


def test_a_pattern_freezes_a_codebook_that_has_no_parameters(tmp_path):
    model = net(tmp_path / "net", 4, "VQ_8_4", "FQ_8")
    phases = {"train": {"freeze": []}, "phase": [{"start": 2, "freeze": ["bottleneck*", "encoder.3.*"]}]}
    learner = learner_for(tmp_path, model=model, **phases)
    for step in range(2):
        learner.step(step, [samples()])
    before, told = state_of(learner), learner.step(2, [samples()])
    learner.step(3, [samples()])
    after = state_of(learner)
    stopped = [name for name in after if name.startswith(("bottleneck.", "encoder.3."))]
    assert stopped
    assert all(torch.equal(before[name], after[name]) for name in stopped)
    assert "bottleneck.usage" in told
    assert "bottleneck.revived" not in told
    assert not torch.equal(before["encoder.6.weight"], after["encoder.6.weight"])
    assert learner.vae.encoder.training
    assert not learner.vae.encoder[3].training


def test_a_pattern_may_name_one_codebook(tmp_path):
    freeze = {"train": {"freeze": ["bottleneck.quantizer.codebooks.0.codes"]}}
    learner = learner_for(tmp_path, model=net(tmp_path / "net", 4, "RVQ_8_4_2_from-data=false"), **freeze)
    before = state_of(learner)
    learner.step(0, [samples()])
    after, codes = state_of(learner), "bottleneck.quantizer.codebooks.{}.codes"
    assert torch.equal(before[codes.format(0)], after[codes.format(0)])
    assert not torch.equal(before[codes.format(1)], after[codes.format(1)])


def test_dead_codes_are_revived_and_told(tmp_path):
    learner = learner_for(tmp_path, model=net(tmp_path / "net", 4, "VQ_64_4_from-data=false_decay=0.5"))
    x = torch.zeros(4, 3, 16, 16)  # all positions alike: one code is used, 63 starve
    told = [learner.step(step, [x])["bottleneck.revived"].item() for step in range(8)]
    assert told[0] == 0
    assert sum(told) >= 63
    assert "bottleneck (usage " in line({"loss": 1.0, "bottleneck.usage": 0.5, "bottleneck.revived": 63.0})
    assert "revived" not in line({"loss": 1.0, "bottleneck.usage": 0.5, "bottleneck.revived": 0.0})


def test_stats_count_the_codes_of_a_data_set(make_model, flexvae, photos_folder, tmp_path):
    encoder = ["C2d_3_4_4_4", "RVQ_8_4_2", "C2d_4_2_1"]
    path = make_model(tmp_path / "run", encoder=encoder, bottleneck="FSQ_5.3", decoder=["UpS_4", "C2d_2_3_1"])
    ended = flexvae("stats", path, photos_folder, "--workers", 0, "--json")
    assert ended.exit_code == 0, ended.stderr
    inner, outer = json.loads(ended.stdout)["quantizers"]
    model = load_model(path)
    seen = {}
    model.vae.encoder[1].quantizer.register_forward_hook(lambda _, __, out: seen.setdefault("inner", []).append(out))
    model.vae.bottleneck.quantizer.register_forward_hook(lambda _, __, out: seen.setdefault("outer", []).append(out))
    with torch.inference_mode():
        for image in sorted(photos_folder.iterdir()):
            model.encode(model.preprocess(Image.open(image))[None])
    for found, name, books, codes in ((inner, "inner", 2, 8), (outer, "outer", 1, 15)):
        indices = torch.cat([each.indices.transpose(0, 1).flatten(1) for each in seen[name]], dim=1)
        counts = torch.stack([torch.bincount(book, minlength=codes) for book in indices]).double()
        share = counts / counts.sum(1, keepdim=True)
        entropy = torch.special.entr(share).sum(1) / math.log(2)
        assert (found["codebooks"], found["codes"]) == (books, codes)
        assert found["usage"] == pytest.approx((counts > 0).double().mean().item())
        assert found["entropy"] == pytest.approx(entropy.mean().item())
        assert found["perplexity"] == pytest.approx(entropy.exp2().mean().item())
    assert [inner["place"], outer["place"]] == ["encoder.1", "bottleneck"]
    rates = json.loads(flexvae("eval", path, photos_folder, "--workers", 0, "--json").stdout)["totals"]["rate"]
    assert rates["min"] == rates["max"] == pytest.approx(math.log2(15) / 16)  # one index for every 4x4 pixels
    said = flexvae("stats", path, photos_folder, "--workers", 0).stdout
    assert "encoder.1: " in said
    assert "2 codebooks of 8 codes used" in said


def test_how_a_batch_is_cut_does_not_move_the_codebook(tmp_path):
    books = []
    for sizes in ([4], [2, 2]):
        learner = learner_for(tmp_path, model=net(tmp_path / "net", 4, "VQ_8_4_from-data=false_revive=0"))
        learner.step(0, samples(4).split(sizes))
        books.append(learner.vae.state_dict()["bottleneck.quantizer.codebooks.0.codes"])
    torch.testing.assert_close(*books)


@pytest.mark.parametrize("code", ["VQ_8_4", "FQ_8"])
def test_a_step_that_is_not_finite_leaves_the_codebooks_alone(tmp_path, code):
    learner = learner_for(tmp_path, model=net(tmp_path / "net", 4, code, code))
    learner.step(0, [samples()])
    before = {name: t.clone() for name, t in learner.vae.state_dict().items()}
    broken = samples()
    broken[0, 0, 0, 0] = math.nan
    learner.step(1, [broken])
    after = learner.vae.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert int(learner.health.total) == 1


def test_half_precision_finds_as_many_codes_as_full(tmp_path):
    torch.manual_seed(0)
    quantizer = QuantizedEntry(installed().registry.find("layer", "FSQ").spec.factory((64, 64)), "").eval()
    x = torch.randn(1, 2, 128, 128).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        half = quantizer(x)
    full = quantizer(x.float())
    assert half.dtype == torch.bfloat16
    plan = plan_for(tmp_path, model=net(tmp_path / "net", 2, "FSQ_64.64"), train={"precision": "bf16"})
    bottleneck = build_vae(plan.net).eval().bottleneck
    with torch.autocast("cpu", torch.bfloat16):
        found = bottleneck(x).indices
    assert len(found.unique()) == len(bottleneck(x.float()).indices.unique()) > 1000
    torch.testing.assert_close(half.float(), full, rtol=0.01, atol=0.01)


def test_training_in_half_precision_keeps_the_codes_in_full(tmp_path):
    learner = learner_for(tmp_path, model=net(tmp_path / "net", 4, "VQ_8_4", "VQ_8_4"), train={"precision": "bf16"})
    seen = []
    for module in (learner.vae.encoder[3].quantizer, learner.vae.bottleneck.quantizer):
        module.register_forward_pre_hook(lambda _, x: seen.append((x[0].dtype, torch.is_autocast_enabled("cpu"))))
    learner.step(0, [samples()])
    assert seen == [(torch.float32, False)] * 2


def test_the_step_does_not_wait_for_the_device(tmp_path, monkeypatch):
    def forbidden(*_):
        raise AssertionError("a host synchronisation in the training step")

    learner = learner_for(tmp_path, model=net(tmp_path / "net", 4, "VQ_8_4", "FQ_8"))
    for each in ("item", "tolist", "__bool__", "__float__", "__int__"):
        monkeypatch.setattr(torch.Tensor, each, forbidden)
    for step in range(3):
        learner.step(step, samples().split(3))


@pytest.mark.parametrize(("code", "bits"), [("FSQ_4.4.4.4", 8 * 16), ("RVQ_8_4_2", 2 * 3 * 16), ("FQ_8", 4 * 8 * 16)])
def test_the_rate_is_what_the_indices_cost(tmp_path, code, bits):
    from types import SimpleNamespace

    vae = build_vae(plan_for(tmp_path, model=net(tmp_path / "net", 4, code)).net).eval()
    assert bits_of(SimpleNamespace(vae=vae), vae.encode(samples(2))) == pytest.approx([bits, bits])


def test_residual_codebooks_start_from_data_one_after_the_other(tmp_path):
    learner = learner_for(tmp_path, model=net(tmp_path / "net", 4, "RVQ_8_4_2"))
    ages = []
    for step in range(3):
        values = learner.step(step, [samples()])
        if step == 0:
            assert values["bottleneck"] == 0  # nothing is quantized yet
        state = learner.vae.state_dict()
        ages.append([int(state[f"bottleneck.quantizer.codebooks.{level}.age"]) for level in range(2)])
    assert ages == [[1, 0], [2, 1], [3, 2]]
    assert state["bottleneck.quantizer.codebooks.1.codes"].unique(dim=0).shape == (8, 4)


def test_a_model_whose_plugin_is_missing_says_what_to_install(make_model, tmp_path):
    from flexvae_cli.engine.modelfiles import find_model
    from flexvae_cli.errors import ModelError
    from flexvae_cli.net import from_description

    path = make_model(tmp_path / "run", encoder=["C2d_3_4_4_4"], bottleneck="VQ_8_4", decoder=["UpS_4", "C2d_4_3_1"])
    core = installed().registry.only({}, {})
    with pytest.raises(ModelError) as caught:
        from_description(find_model(path).model, core, "m")
    assert "pip install flexvae-layers-quantize" in caught.value.problems[0].hint


def test_a_quantizer_is_known_as_a_bottleneck_too():
    registry = installed().registry
    for entry in registry.all("layer"):
        spec = entry.spec
        if isinstance(spec, LayerSpec) and spec.quantizes:
            assert registry.find("bottleneck", spec.name).spec == spec.as_bottleneck()


def test_several_learners_in_step_have_one_codebook(tmp_path, monkeypatch):
    """What several processes do: each collects for itself, buffers are averaged, then each settles."""
    model = net(tmp_path / "net", 4, "VQ_8_4")
    learners = [learner_for(tmp_path, model=model) for _ in range(2)]
    from flexvae_layers_quantize import codebook

    for step in range(3):
        for rank, learner in enumerate(learners):
            monkeypatch.setattr(codebook, "processes", lambda rank=rank: (rank, 2))
            learner.vae.train()
            torch.manual_seed(step * 2 + rank)
            learner.vae(samples(6)[rank::2])
        for buffers in zip(*(learner.vae.buffers() for learner in learners), strict=True):
            mean = buffers[0].clone()
            if mean.is_floating_point():
                mean = torch.stack(buffers).mean(0)
            for buffer in buffers:
                buffer.copy_(mean)
    one, two = (learner.vae.state_dict() for learner in learners)
    assert all(torch.equal(one[name], two[name]) for name in one)
    codes, started = one["bottleneck.quantizer.codebooks.0.codes"], one["bottleneck.quantizer.codebooks.0.age"]
    assert started == 3
    h = Learner.prepare(learners[0], samples(6))
    rows = learners[0].vae.encoder(h).movedim(1, -1).reshape(-1, 4)
    assert torch.cdist(codes, rows).amin(1).max() < rows.std() * 2
