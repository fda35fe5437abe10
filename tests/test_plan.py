"""A config against structures and plugins: all that can be known before torch is imported."""

from __future__ import annotations

import json

import pytest

from flexvae_cli.config import load_config, shipped_configs
from flexvae_cli.config.shipped import summaries
from flexvae_cli.errors import DataError, ModelError, UsageError
from flexvae_cli.plan import make_plan, require_inputs


@pytest.fixture
def config(tmp_path):
    (tmp_path / "e.json").write_text(json.dumps(["C2d_3_8_4_4"]))
    (tmp_path / "d.json").write_text(json.dumps(["C2d_4_8_1", "UpS_4", "C2d_8_3_3_1_1"]))
    path = tmp_path / "c.toml"
    path.write_text(
        '[model]\nencoder = "e.json"\ndecoder = "d.json"\n[data]\nsource = "x"\ninput = "3x32x32"\n'
        '[train]\nrun_dir = "run"\nmax_steps = 1\n'
    )
    return lambda *overrides: load_config(path, overrides)


@pytest.mark.parametrize("name", sorted(summaries()))
def test_every_shipped_config_is_traced(name):
    plan = make_plan(load_config(shipped_configs() / f"{name}.toml"))
    assert plan.decoder.complete
    assert plan.decoder.gives == plan.settings.data.input


def test_the_terms_are_the_seed_s_formula(config):
    plan = make_plan(
        config(
            "loss.alpha=2.0",
            "loss.kld_weight=0.1",
            "loss.ssim_metrics=true",
            "loss.beta=0.3",
            "loss.sparse_metrics=true",
        )
    )
    assert [(t.name, t.weight) for t in plan.terms] == [
        ("reconstruction", 2.0),
        ("kld", 0.1),
        ("ssim", 0.3),
        ("sparse", 1.0),
    ]
    assert [t.name for t in make_plan(config()).terms] == ["reconstruction", "kld"]


def test_without_a_posterior_there_is_no_kl(config, tmp_path):
    (tmp_path / "e.json").write_text(json.dumps(["C2d_3_4_4_4"]))
    assert [t.name for t in make_plan(config("model.bottleneck=None")).terms] == ["reconstruction"]
    with pytest.raises(UsageError, match=r"loss\.kld_weight: wants a KL bottleneck; this one is None"):
        make_plan(config("model.bottleneck=None", "loss.kld_weight=1e-6"))


def test_bce_makes_the_output_logits(config):
    assert make_plan(config("loss.reconstruction=bce")).output == "logits"
    assert make_plan(config("loss.reconstruction=huber_0.1")).output == "samples"


@pytest.mark.parametrize(
    ("overrides", "what"),
    [
        (["loss.reconstruction=msee"], "loss.reconstruction: unknown loss 'msee'; did you mean 'mse'?"),
        (["loss.reconstruction=huber_0"], "huber delta wants a number, at least 1e-06, not 0"),
        (["loss.reconstruction=kld"], "loss.reconstruction: 'kld' does not compare samples; it has loss.kld_weight"),
        (
            ["loss.ssim_metrics=true", "data.input=3x8x8"],
            "loss.ssim_metrics: ssim wants sides of at least 11 pixels; the input is 3x8x8",
        ),
        (["data.input=3x32", "data.source=builtin:scenery"], "data.input: images are channels x height x width"),
        (["data.input=5x32x32", "data.source=builtin:scenery"], "images have 1 to 4 channels"),
        (["data.resize=none", "data.min_size=16"], "data.min_size 16 is below the input"),
        (
            ["plugins.prefer={C2d='flexvae-layers-none'}"],
            "'flexvae-layers-none' does not bring the code 'C2d'; 'flexvae' does",
        ),
        (["model.encoder=none.json"], "none.json: no such file"),
        (["model.bottleneck=Vector"], "model.bottleneck: unknown bottleneck 'Vector'"),
    ],
)
def test_what_does_not_go_together_is_said(config, overrides, what):
    with pytest.raises(UsageError) as caught:
        make_plan(config(*overrides))
    assert what in str(caught.value)


def test_a_least_size_between_the_sides_of_the_input_is_fine(config):
    shape = ["data.input=3x16x32", "data.resize=none"]
    make_plan(config(*shape, "data.min_size=24"))
    with pytest.raises(UsageError, match=r"data\.min_size 8 is below the input"):
        make_plan(config(*shape, "data.min_size=8"))


def test_problems_of_both_structures_and_the_loss_come_at_once(config, tmp_path):
    (tmp_path / "e.json").write_text('["Foo"]')
    (tmp_path / "d.json").write_text('["Bar"]')
    with pytest.raises(UsageError) as caught:
        make_plan(config("loss.reconstruction=nix", "data.input=9x32x32", "data.source=builtin:scenery"))
    assert len(caught.value.problems) == 4


def test_a_mismatch_of_channels_and_a_wrong_loss_come_at_once(config, tmp_path):
    (tmp_path / "e.json").write_text(json.dumps(["C2d_1_8_4_4"]))
    with pytest.raises(UsageError) as caught:
        make_plan(config("loss.reconstruction=nix"))
    assert len(caught.value.problems) == 2


@pytest.mark.parametrize(
    ("overrides", "error", "what"),
    [
        (["data.source=nowhere"], DataError, "data.source: no such folder: "),
        (["data.source=builtin:scnery"], DataError, "no built-in set 'builtin:scnery'; did you mean 'builtin:scenery'"),
        (["data.source=builtin:scenery", "data.validation=gone"], DataError, "data.validation: no such folder: "),
        (["data.source=builtin:scenery", "model.init=gone"], ModelError, "model.init: no such model: "),
    ],
)
def test_inputs_that_are_not_there(config, overrides, error, what):
    with pytest.raises(error) as caught:
        require_inputs(config(*overrides).settings)
    assert what in str(caught.value)


def test_giants_are_refused_with_their_number(config, tmp_path):
    (tmp_path / "e.json").write_text(json.dumps(["C2d_3_99999_4_4", "C2d_99999_8_99_1_49"]))
    with pytest.raises(UsageError, match=r"the net has 7,8\d\d,\d{3},\d{3} parameters; the most is 1,000,000,000"):
        make_plan(config())
