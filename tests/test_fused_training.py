"""Fused layers where a net is used: in training across checkpoints, in a loaded model, in `inspect` and the profile."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from learners import learner_for, samples, state_of
from PIL import Image

from flexvae_cli.engine import rules
from flexvae_cli.engine.device import keep_freed_memory
from flexvae_cli.engine.fusing import fused_in
from flexvae_cli.engine.model import load
from flexvae_cli.engine.parts import restore_parts
from flexvae_cli.errors import UsageError


def photograph(folder: Path) -> Path:
    """A folder with one small image."""
    images = folder / "images"
    images.mkdir(exist_ok=True)
    Image.new("RGB", (16, 16), (30, 90, 150)).save(images / "a.png")
    return images


SGD = {"name": "sgd", "lr": 1e-2, "momentum": 0.9}


def run_of(folder: Path, *fuse: str) -> dict[str, torch.Tensor]:
    """The state behind two steps in each of the given ways, with a checkpoint's round trip between them."""
    state: tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]] | None = None
    for part, way in enumerate(fuse):
        # SGD passes rounding on as it is; AdamW divides gradients by their size, and rounding with them.
        learner = learner_for(folder, train={"fuse": way}, ema={"decay": 0.9}, optimizer=SGD)
        if state is not None:
            weights, training = state
            learner.vae.load_state_dict(weights)
            restore_parts(learner.parts(), training, Path("x"))
        for step in (2 * part, 2 * part + 1):
            learner.step(step, [learner.prepare(x) for x in samples(4).split(2)])
        training = {name: value.detach().clone() for name, value in learner.tensors().items()}
        state = {name: value.clone() for name, value in learner.weights().items()}, training
    return state_of(learner)


def test_on_off_and_on_again_is_the_same_training(tmp_path: Path) -> None:
    whole, mixed, plain = (run_of(tmp_path, *ways) for ways in (["on"] * 3, ["on", "off", "on"], ["off"] * 3))
    assert whole.keys() == mixed.keys() == plain.keys()
    for name, value in plain.items():
        if name.startswith("encoder") or name.startswith("decoder"):
            for other in (whole[name], mixed[name]):
                torch.testing.assert_close(other, value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("way", ["auto", "on"])
def test_a_fused_run_that_goes_on_is_bit_identical(tmp_path: Path, way: str) -> None:
    whole = run_of(tmp_path, way, way)
    parts = learner_for(tmp_path, train={"fuse": way}, ema={"decay": 0.9}, optimizer=SGD)
    for step in range(4):
        parts.step(step, [parts.prepare(x) for x in samples(4).split(2)])
    assert all(torch.equal(value, whole[name]) for name, value in state_of(parts).items())


def test_the_gradients_of_a_step_are_those_of_the_plain_net(tmp_path: Path) -> None:
    plain, fused = (learner_for(tmp_path, train={"fuse": way}) for way in ("off", "on"))
    assert fused_in(fused.vae)
    assert not fused_in(plain.vae)
    for learner in (plain, fused):
        learner.step(0, [samples()])
    wanted = {name: p.grad for name, p in plain.vae.named_parameters()}
    largest = max(float(g.abs().max()) for g in wanted.values() if g is not None)
    for name, parameter in fused.vae.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name], rtol=1e-4, atol=1e-5 * largest)


def test_freezing_and_recomputing_hold_for_fused_layers(tmp_path: Path) -> None:
    train = {"fuse": "on", "freeze": ["decoder.3.*"], "activation_checkpointing": "blocks"}
    learner = learner_for(tmp_path, train=train)
    before = {name: p.detach().clone() for name, p in learner.vae.named_parameters()}
    learner.step(0, [samples()])
    moved = {name for name, p in learner.vae.named_parameters() if not torch.equal(p, before[name])}
    assert moved
    assert not any(name.startswith("decoder.3") for name in moved)


def test_compiled_nets_are_left_as_they_are_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="compile and fuse"):
        learner_for(tmp_path, train={"compile": True, "fuse": "on"})


def test_a_loaded_model_is_fused_and_the_environment_can_say_no(make_model, tmp_path, monkeypatch) -> None:
    path = make_model(tmp_path / "model")
    model = load(path)
    x = torch.rand(1, 3, 16, 16)
    assert model.vae.state_dict().keys() == load(path, fuse="off").vae.state_dict().keys()
    torch.testing.assert_close(model(x), load(path, fuse="off")(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model(x), load(path, fuse="on")(x), rtol=1e-4, atol=1e-5)
    monkeypatch.setenv("FLEXVAE_FUSE", "off")
    assert not fused_in(load(path).vae)
    monkeypatch.setenv("FLEXVAE_FUSE", "perhaps")
    with pytest.raises(UsageError, match="FLEXVAE_FUSE"):
        load(path)


def test_the_allocator_can_be_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEXVAE_ALLOCATOR", "system")
    assert not keep_freed_memory()


def test_inspect_lists_what_computes_as_one(tmp_path: Path, flexvae) -> None:
    path = tmp_path / "net.json"
    path.write_text('["C2d_3_32_1", "VAERB_32_32", "C2d_32_32_3_2", "UpS_2", "C2d_32_8_3_1_1", "GN_4_8", "SiLU"]')
    ended = flexvae("inspect", str(path), "--fused", "--json")
    assert ended.exit_code == 0, ended.stderr
    found = json.loads(ended.stdout)["fused"]
    pairs = [["structure.1", "structure.2"], ["structure.3", "structure.4"], ["structure.5", "structure.6"]]
    assert [pair for each in found for pair in each["layers"] if len(pair) == 2] == pairs
    assert "fused" not in json.loads(flexvae("inspect", str(path), "--json").stdout)


def test_the_profile_accounts_for_the_whole_step(tmp_path: Path, flexvae) -> None:
    (tmp_path / "e.json").write_text('["C2d_3_32_4_4", "VAERB_32_32", "C2d_32_4_1"]')
    (tmp_path / "d.json").write_text('["C2d_2_32_1", "UpS_4", "C2d_32_3_3_1_1"]')
    config = tmp_path / "c.toml"
    config.write_text(
        '[model]\nencoder = "e.json"\ndecoder = "d.json"\n[data]\nsource = "builtin:scenery"\ninput = "3x16x16"\n'
        'workers = 0\n[train]\nrun_dir = "run"\nmax_steps = 5\nbatch_size = 2\ndevice = "cpu"\n'
    )
    ended = flexvae("train", "--config", str(config), "--profile", "--json")
    assert ended.exit_code == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert list(found["stages"]) == ["data", "forward", "loss", "backward", "optimizer", "other"]
    assert sum(found["stages"].values()) == pytest.approx(found["seconds"])
    assert all(seconds > 0 for seconds in found["stages"].values())
    assert {each["code"] for each in found["layers"]} == {
        "C2d_3_32_4_4", "VAERB_32_32", "C2d_32_4_1", "KL", "C2d_2_32_1", "UpS_4 + C2d_32_3_3_1_1",
    }  # fmt: skip
    in_layers = sum(each["forward"] for each in found["layers"])
    assert 0 < in_layers <= found["stages"]["forward"]
    assert json.loads(Path(found["trace"]).read_text())["traceEvents"]
    assert not (tmp_path / "run").exists()


def test_nothing_of_a_fusion_is_a_part_of_the_net(tmp_path: Path) -> None:
    plain, fused = (learner_for(tmp_path, train={"fuse": way}).vae for way in ("off", "on"))
    assert [(name, type(m)) for name, m in fused.named_modules()] == [(n, type(m)) for n, m in plain.named_modules()]


@pytest.mark.parametrize("command", ["infer", "encode"])
def test_the_layout_is_that_of_the_precision(command: str, make_model, tmp_path: Path, flexvae, monkeypatch) -> None:
    asked: list[torch.dtype | None] = []

    def layout(device: torch.device, dtype: torch.dtype | None, **_: bool) -> torch.memory_format:
        asked.append(dtype)
        return torch.contiguous_format

    monkeypatch.setattr(rules, "layout", layout)
    model = make_model(tmp_path / "model")
    for precision in ("fp32", "bf16"):
        options = ("--limit", 1) if command == "infer" else ()
        ended = flexvae(
            command,
            model,
            photograph(tmp_path),
            tmp_path / precision,
            "--workers",
            0,
            "--precision",
            precision,
            *options,
        )
        assert ended.exit_code == 0, ended.stderr
    load(model, dtype=torch.float16)
    assert asked == [None, torch.bfloat16, torch.float16]


def test_infer_computes_in_half_precision_and_scores_in_full(make_model, tmp_path: Path, flexvae) -> None:
    model = make_model(tmp_path / "model")
    found = {}
    for precision in ("fp32", "bf16"):
        out = tmp_path / precision
        options = ("--limit", 1, "--workers", 0, "--precision", precision, "--json")
        ended = flexvae("infer", model, "builtin:scenery/val", out, *options)
        assert ended.exit_code == 0, ended.stderr
        found[precision] = json.loads(ended.stdout)["mean"]["psnr"]
    assert found["bf16"] != found["fp32"]
    assert found["bf16"] == pytest.approx(found["fp32"], abs=0.1)
