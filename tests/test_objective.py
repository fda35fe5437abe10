"""`[loss]` made into terms: names, weights over the steps, and everything that does not go together."""

from __future__ import annotations

import json

import pytest
from safetensors.torch import save_file

from flexvae_cli.api import loss
from flexvae_cli.api.spec import NAME
from flexvae_cli.config import load_config
from flexvae_cli.config.settings import LossTable
from flexvae_cli.engine.scalars import SCALARS
from flexvae_cli.errors import UsageError
from flexvae_cli.objective import RESERVED, Ramp, terms_of
from flexvae_cli.plan import make_plan
from flexvae_cli.plugins import installed
from flexvae_cli.registry import Registered, Registry


@pytest.fixture
def config(tmp_path, monkeypatch):
    """A config in `tmp_path`, with more lines for it and more `--set`."""
    (tmp_path / "e.json").write_text(json.dumps(["C2d_3_8_4_4"]))
    (tmp_path / "plain.json").write_text(json.dumps(["C2d_3_4_4_4"]))
    (tmp_path / "d.json").write_text(json.dumps(["C2d_4_8_1", "UpS_4", "C2d_8_3_3_1_1"]))
    monkeypatch.chdir(tmp_path)

    def make(lines="", *overrides):
        path = tmp_path / "c.toml"
        path.write_text(
            '[model]\nencoder = "e.json"\ndecoder = "d.json"\n[data]\nsource = "x"\ninput = "3x32x32"\n'
            f'[train]\nrun_dir = "run"\nmax_steps = 1000\n{lines}'
        )
        return load_config(path, overrides)

    return make


def terms(config):
    return make_plan(config).terms


def refused(config) -> list[str]:
    with pytest.raises(UsageError) as caught:
        make_plan(config)
    return [str(problem) for problem in caught.value.problems]


def test_terms_of_tables(config):
    found = terms(
        config(
            """
            [[loss.term]]
            name = "charbonnier"
            eps = 0.01
            weight = 0.5
            start = 100
            warmup = 50
            [[loss.term]]
            name = "huber"
            [[loss.term]]
            name = "charbonnier"
            """
        )
    )
    assert [(t.name, t.bound.code, t.weight, t.ramp) for t in found[2:]] == [
        ("charbonnier", "charbonnier_0.01", 0.5, Ramp(100, 50)),
        ("huber", "huber", 1.0, Ramp()),
        ("charbonnier-2", "charbonnier", 1.0, Ramp()),
    ]
    assert [found[2].weight_at(step) for step in (99, 100, 148, 149, 150)] == [0.0, 0.01, 0.49, 0.5, 0.5]
    assert [found[2].counts_at(step) for step in (99, 100)] == [False, True]


def test_no_term_takes_the_name_of_another_number_of_the_log():
    """All that a loss can be called, which is letters and digits; `ssim` in training is a term anyway."""
    assert {name for name in SCALARS if NAME.fullmatch(name)} - {"ssim"} <= RESERVED


def test_a_term_beside_the_switch_of_the_same_loss(config):
    found = terms(config('[loss]\nssim_metrics = true\n[[loss.term]]\nname = "ssim"\nwindow_size = 7\n'))
    assert [t.name for t in found] == ["reconstruction", "kld", "ssim", "ssim-2"]
    assert found[3].bound.code == "ssim_7"


@pytest.mark.parametrize(
    ("lines", "what"),
    [
        ('name = "charbonier"', "loss.term[0].name: unknown loss 'charbonier'; did you mean 'charbonnier'?"),
        ('name = "charbonnier"\nepsilon = 1', "loss.term[0].epsilon: charbonnier has no parameter of that name"),
        ('name = "charbonnier"\neps = "1"', "loss.term[0].eps: charbonnier wants a number, at least 1e-06, not '1'"),
        ('name = "charbonnier"\neps = 0', "loss.term[0].eps: charbonnier wants a number, at least 1e-06, not 0"),
        ('name = "mse"\neps = 1', "loss.term[0].eps: mse has no parameters"),
        ('name = "mse"\nweights = "d.json"', "loss.term[0].weights: mse has no parameters"),
        ('name = "kld"', "loss.term[0].name: kld has keys of its own: loss.kld_weight"),
        ('name = "bce"', "loss.term[0].name: bce takes logits"),
        ('name = "msssim"', "loss.term[0]: msssim wants sides of at least 161 pixels; the input is 3x32x32"),
        ('name = "msssim"\nwindow_size = 3', "wants sides of at least 33 pixels; the input is 3x32x32"),
        ('name = "ssim"\nwindow_size = 8', "loss.term[0]: ssim wants an odd window-size, not 8"),
        (
            'name = "lpips"',
            "loss.term[0]: lpips needs weights: a safetensors file with the features of torchvision's net",
        ),
        (
            'name = "lpips"',
            "`flexvae import-pt vgg16-397923af.pth vgg.pth lpips-vgg.safetensors --drop 'classifier.*'`",
        ),
        ('name = "lpips"\nweights = "gone"', "loss.term[0].weights: no such file: gone"),
        ('name = "lpips"\nweights = "d.json"', "loss.term[0].weights: wants a safetensors file, not d.json"),
        ('name = "lpips"\nweights = "d.json"', "hint: flexvae import-pt turns .pth files into one"),
        ('name = "lpips"\nnet = "squeeze"', "loss.term[0].net: lpips wants vgg or alex"),
    ],
)
def test_what_is_wrong_with_a_term_is_said(config, lines, what):
    assert what in refused(config(f"[[loss.term]]\n{lines}"))[0]


def test_all_problems_come_at_once(config):
    found = refused(
        config(
            """
            [loss]
            kld_warmup_steps = 5
            [[loss.term]]
            name = "charbonnier"
            epps = 1
            net = "vgg"
            [[loss.term]]
            name = "nix"
            [[loss.term]]
            name = "lpips"
            """
        )
    )
    assert [text.partition(": ")[0] for text in found] == [
        "loss.kld_warmup_steps",
        "loss.term[0].epps",
        "loss.term[0].net",
        "loss.term[1].name",
        "loss.term[2]",
    ]


def test_weights_are_found_from_the_config_s_folder(config, tmp_path):
    import torch

    save_file({"x": torch.zeros(1)}, tmp_path / "w.safetensors")
    found = terms(config('[[loss.term]]\nname = "lpips"\nweights = "w.safetensors"\nnet = "alex"'))
    assert found[2].bound.values == {"net": "alex", "weights": str(tmp_path / "w.safetensors")}
    assert found[2].bound.code == "lpips_net=alex"


@pytest.mark.parametrize(
    ("shape", "net", "what"),
    [
        ("4x32x32", "vgg", "lpips wants samples of 1 or 3 channels, grey or RGB, not 4; the input is 4x32x32"),
        ("3x30x32", "alex", "lpips wants sides of at least 31 pixels for the net alex"),
    ],
)
def test_samples_that_lpips_cannot_take(config, tmp_path, shape, net, what):
    (tmp_path / "w.safetensors").write_text("")
    lines = f'[[loss.term]]\nname = "lpips"\nweights = "w.safetensors"\nnet = "{net}"'
    assert any(what in text for text in refused(config(lines, f"data.input={shape}")))


@pytest.mark.parametrize("name", ["ffl", "lpips"])
def test_losses_of_images_take_no_volumes(config, tmp_path, name):
    (tmp_path / "w.safetensors").write_text("")
    weights = 'weights = "w.safetensors"' if name == "lpips" else ""
    found = refused(config(f'[[loss.term]]\nname = "{name}"\n{weights}', "data.input=3x32x32x32"))
    assert any(f"loss.term[0]: {name} works on 2-D data; the input is 3x32x32x32" in text for text in found)
    problems = refused(config('[[loss.term]]\nname = "gradient"\n[[loss.term]]\nname = "fft"', "data.input=3x32x32x32"))
    assert not any("loss.term" in text for text in problems)


@pytest.mark.parametrize("name", ["ssim", "msssim"])
def test_structural_similarity_is_of_images_and_volumes(config, name):
    found = refused(config(f'[[loss.term]]\nname = "{name}"\nwindow_size = 3', "data.input=3x256"))
    assert any(f"loss.term[0]: {name} works on 2-D and 3-D data; the input is 3x256" in text for text in found)
    found = refused(config(f'[[loss.term]]\nname = "{name}"\nwindow_size = 3', "data.input=3x64x64x64"))
    assert not any("loss.term" in text for text in found)


@pytest.mark.parametrize(
    ("table", "size", "what"),
    [
        ('name = "stft"', "1x512", "wants more than 512 samples, half of its window; the input is 1x512"),
        ('name = "stft"\nwindows = [8, 64]', "1x512", "wants windows of at least 16 samples, not 8"),
        ('name = "stft"', "3x32x32", "stft works on 1-D data; the input is 3x32x32"),
        ('name = "mel"\nmels = 400', "1x4096", "has 400 mels, too many for a window of 1024 at a rate of 16000"),
    ],
)
def test_spectral_losses_say_what_they_want(config, table, size, what):
    found = refused(config(f"[[loss.term]]\n{table}", f"data.input={size}"))
    assert any(what in text for text in found)


def test_a_window_larger_than_the_input_names_the_switch(config):
    found = refused(config("[loss]\nssim_metrics = true", "data.input=3x8x8"))
    assert found == ["loss.ssim_metrics: ssim wants sides of at least 11 pixels; the input is 3x8x8"]


def test_schedules_of_the_kl_weight(config):
    linear = terms(config("[loss]\nkld_weight = 0.1\nkld_schedule = 'linear'\nkld_warmup_steps = 10"))[1]
    assert [linear.weight_at(step) for step in (0, 4, 9, 10, 999)] == pytest.approx([0.01, 0.05, 0.1, 0.1, 0.1])
    lines = "[loss]\nkld_weight = 0.1\nkld_schedule = 'cyclical'\nkld_warmup_steps = 2\nkld_cycle_steps = 4\n"
    cyclical = terms(config(lines + "free_bits = 0.25"))[1]
    assert [cyclical.weight_at(step) for step in range(9)] == pytest.approx([0.05, 0.1, 0.1, 0.1] * 2 + [0.05])
    assert cyclical.bound.code == "kld_0.25"
    held = terms(config("[loss]\nkld_target = 0.5\nfree_bits = 0.25"))[1]
    assert (held.target, held.weight, held.ramp) == (0.5, 1e-6, Ramp())


@pytest.mark.parametrize(
    ("lines", "what"),
    [
        ("kld_warmup_steps = 5", "loss.kld_warmup_steps: has no effect while kld_schedule is 'constant'"),
        ("kld_cycle_steps = 5", "loss.kld_cycle_steps: has no effect while kld_schedule is 'constant'"),
        ("kld_schedule = 'linear'", "loss.kld_warmup_steps: must be above 0 where kld_schedule is 'linear'"),
        (
            "kld_schedule = 'linear'\nkld_warmup_steps = 5\nkld_cycle_steps = 9",
            "loss.kld_cycle_steps: has no effect while kld_schedule is 'linear'",
        ),
        (
            "kld_schedule = 'cyclical'\nkld_warmup_steps = 5",
            "loss.kld_cycle_steps: must be above 0 where kld_schedule is 'cyclical'",
        ),
        (
            "kld_schedule = 'cyclical'\nkld_warmup_steps = 5\nkld_cycle_steps = 4",
            "loss.kld_warmup_steps: is longer than a cycle: 5 of 4 steps",
        ),
        (
            "kld_schedule = 'linear'\nkld_warmup_steps = 5\nkld_target = 1",
            "loss.kld_target: moves the KL weight, and so does kld_schedule = 'linear'",
        ),
        (
            "kld_target = 1\nkld_weight = 0",
            "loss.kld_weight: is where kld_target begins: it must be from 1e-12 to 1000",
        ),
        ("kld_target = 0.5\nfree_bits = 0.5", "loss.free_bits: is 0.5, so no rate is pushed down to kld_target = 0.5"),
        ("quantizer_weight = 0.5", "loss.quantizer_weight: has no effect: this net has no quantizers"),
    ],
)
def test_options_without_effect_are_refused(config, lines, what):
    found = refused(config(f"[loss]\n{lines}"))
    assert len(found) == 1
    assert what in found[0]


def test_without_a_posterior_every_key_of_the_kl_is_refused(config):
    lines = "kld_weight = 1\nkld_target = 1\nfree_bits = 0.1\nkld_schedule = 'linear'\nkld_warmup_steps = 2"
    plain = ("model.bottleneck=None", "model.encoder=plain.json")
    found = refused(config(f"[loss]\n{lines}", *plain))
    keys = ["kld_weight", "kld_schedule", "kld_warmup_steps", "free_bits", "kld_target"]
    assert found == [f"loss.{key}: wants a KL bottleneck; this one is None" for key in keys]
    neutral = "kld_weight = 0\nfree_bits = 0\nkld_schedule = 'constant'\nkld_warmup_steps = 0"
    assert [t.name for t in terms(config(f"[loss]\n{neutral}", *plain))] == ["reconstruction"]


def test_a_phase_has_its_own_terms(config):
    plan = make_plan(
        config(
            """
            [[phase]]
            start = 10
            loss = { reconstruction = "l1", kld_schedule = "linear", kld_warmup_steps = 20 }
            [[phase]]
            start = 20
            loss = { term = [{ name = "charbonnier", start = 30 }] }
            """
        )
    )
    assert [[t.bound.code for t in phase.terms] for phase in plan.phases] == [
        ["mse", "kld"],
        ["l1", "kld"],
        ["l1", "kld", "charbonnier"],
    ]
    assert plan.phases[2].terms[1].ramp == Ramp(warmup=20)
    assert (
        "phase[0].loss.kld_cycle_steps: has no effect"
        in refused(config("[[phase]]\nstart = 10\nloss = { kld_cycle_steps = 5 }"))[0]
    )


def test_a_check_of_a_stranger_that_fails_is_told():
    @loss("strange", fits=lambda shape: 1 / 0)
    def strange():
        """Strange."""

    registry, problems = Registry([*installed().registry.all("loss"), Registered(strange, "elsewhere", "1")]), []
    table = LossTable.model_validate({"term": [{"name": "strange"}]})
    assert [t.name for t in terms_of(table, (3, 8, 8), registry, None, problems)] == [
        "reconstruction",
        "kld",
        "strange",
    ]
    assert [str(p) for p in problems] == [
        "loss.term[0]: the check of samples of strange fails: ZeroDivisionError: division by zero"
    ]
