"""The discriminator as data: what a config names is read, traced and refused before torch is imported."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from flexvae_cli.adversary import adversary_of
from flexvae_cli.config import load_config, shipped_configs
from flexvae_cli.config.settings import AdversarialTable
from flexvae_cli.config.shipped import files_of
from flexvae_cli.errors import UsageError
from flexvae_cli.plan import make_plan
from flexvae_cli.plugins import installed
from flexvae_cli.structure import read_structure
from flexvae_cli.tracing import trace

PATCHGAN = shipped_configs() / "structures" / "patchgan.json"


@pytest.fixture
def config(tmp_path):
    (tmp_path / "e.json").write_text(json.dumps(["C2d_3_8_4_4"]))
    (tmp_path / "d.json").write_text(json.dumps(["C2d_4_8_1", "UpS_4", "C2d_8_3_3_1_1"]))
    (tmp_path / "critic.json").write_text(json.dumps(["C2d_3_8_4_2_1", "SiLU", "C2d_8_2_4_2_1"]))
    path = tmp_path / "c.toml"
    path.write_text(
        '[model]\nencoder = "e.json"\ndecoder = "d.json"\n[data]\nsource = "x"\ninput = "3x32x32"\n'
        '[train]\nrun_dir = "run"\nmax_steps = 9\n[adversarial]\ndiscriminator = "critic.json"\n'
    )
    return lambda *overrides: load_config(path, overrides)


def problems_of(config, *overrides):
    with pytest.raises(UsageError) as caught:
        make_plan(config(*overrides))
    return caught.value.problems


def test_a_plan_has_the_discriminator_s_trace_or_none(config):
    adversary = make_plan(config()).adversary
    assert adversary.trace.takes == (3, 32, 32)
    assert adversary.trace.gives == (2, 8, 8)
    assert adversary.parameters == 3 * 8 * 16 + 8 + 8 * 2 * 16 + 2
    assert adversary.table.loss == "hinge"
    assert make_plan(load_config(shipped_configs() / "quickstart.toml")).adversary is None


def test_the_discriminator_s_weights_are_not_the_model_s(config):
    plan = make_plan(config())
    assert plan.parameters == plan.encoder.parameters + plan.decoder.parameters


@pytest.mark.parametrize(
    ("structure", "what", "hint"),
    [
        (
            ["C2d_1_8_4_2_1"],
            "critic.json[0]: C2d_1_8_4_2_1 takes 1 channels, but 3 come in with the samples",
            "3x32x32",
        ),
        (["C2d_3_8_4_2_1", "GN_2_6"], "critic.json[1]: GN_2_6 takes 6 channels, but 8 come in", "data.input"),
        (["6*MaxP_2", "C2d_3_1_1"], "the window of 2x2 does not fit the input of 1x1", "3x32x32"),
        (["SiLU"], "critic.json: has nothing to train", ""),
        (["C2d_3_8_4_2_1_bais=false"], "'bais'; did you mean 'bias'?", ""),
    ],
)
def test_what_does_not_fit_is_said_with_what_it_is_given(config, tmp_path, structure, what, hint):
    (tmp_path / "critic.json").write_text(json.dumps(structure))
    told = "\n".join(map(str, problems_of(config)))
    assert what in told
    assert hint in told


def test_all_its_problems_come_at_once_with_those_of_the_nets(config, tmp_path):
    (tmp_path / "critic.json").write_text(json.dumps(["C2d_4_8_3_1_1", "GN_2_6", "C2d_6_1_1"]))
    (tmp_path / "e.json").write_text(json.dumps(["C2d_1_8_4_4"]))
    places = [problem.where.rpartition("/")[2] for problem in problems_of(config)]
    assert sorted(places) == ["critic.json[0]", "critic.json[1]", "e.json[0]"]


def test_a_file_that_is_not_there(config):
    assert "gone.json: no such file" in str(problems_of(config, "adversarial.discriminator=gone.json")[0])


def test_a_layer_that_quantizes_is_refused_once_however_often_it_is_repeated(tmp_path):
    registry = installed().registry
    path = tmp_path / "critic.json"
    path.write_text(json.dumps(["C2d_3_8_1", {"residual": ["3*SiLU"]}, "C2d_8_1_1"]))
    spec = registry.find("layer", "SiLU").spec
    had = getattr(spec, "quantizes", False)
    object.__setattr__(spec, "quantizes", True)
    try:
        problems = []
        table = AdversarialTable(discriminator=path)
        assert adversary_of(table, [(3, 8, 8)], registry, None, problems) is None
    finally:
        object.__setattr__(spec, "quantizes", had)
    assert [p.where.rpartition("/")[2] for p in problems] == ["critic.json[1].residual[0]"]
    assert "SiLU quantizes" in problems[0].what


def test_every_input_that_a_phase_brings_is_tried(config, tmp_path):
    (tmp_path / "critic.json").write_text(json.dumps(["C2d_3_8_4_2_1", "C2d_8_1_12"]))
    phase = "phase=[{start=3, input='3x16x16'}]"
    problem = problems_of(config, phase)[0]
    assert "the window of 12x12 does not fit the input of 8x8" in problem.what
    assert "3x16x16" in problem.hint
    assert make_plan(config("phase=[{start=3, input='3x64x64'}]")).adversary.trace.takes == (3, 32, 32)


def test_a_giant_is_refused(config, tmp_path):
    (tmp_path / "critic.json").write_text(json.dumps(["C2d_3_99999_4_4", "C2d_99999_8_99_1_49"]))
    assert "the discriminator has 7,8" in str(problems_of(config)[0])


def test_planning_it_does_not_import_torch():
    code = (
        "import sys; from pathlib import Path; from flexvae_cli.config import load_config; "
        "from flexvae_cli.plan import make_plan; "
        f"assert make_plan(load_config(Path({str(shipped_configs() / 'adversarial.toml')!r}))).adversary; "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_shipped_discriminator_is_the_70_pixel_patchgan_in_core_codes():
    structure = read_structure(PATCHGAN, installed().registry)
    assert list(structure.distributions) == ["flexvae"]
    assert {entry.partition("_")[0] for entry in structure.document} == {"C2d", "GN", "SiLU"}
    problems = []
    traced = trace(structure.expanded(), (3, 256, 256), problems)
    assert not problems
    assert traced.gives == (1, 30, 30)
    assert traced.reach.field == (70, 70)


def test_the_shipped_config_comes_with_its_discriminator():
    names = [path.name for path in files_of("adversarial")]
    assert names == [
        "adversarial.toml",
        "quickstart.toml",
        "quickstart-encoder.json",
        "quickstart-decoder.json",
        PATCHGAN.name,
    ]


def test_the_docs_show_the_shipped_config():
    page = (Path(__file__).parents[1] / "docs" / "training.md").read_text()
    shown = [tomllib.loads(block) for block in re.findall(r"^```toml\n(.*?)^```", page, re.M | re.S)]
    assert tomllib.loads((shipped_configs() / "adversarial.toml").read_text()) in shown
