"""`train.compile`: which parts are compiled, in which mode, and that they train as the plain ones do."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from learners import learner_for, plan_for, samples
from pydantic import ValidationError

from flexvae_cli.config import load_config
from flexvae_cli.config.settings import Settings
from flexvae_cli.engine.resume import FREE_KEYS, run_state
from flexvae_cli.errors import UsageError

SGD = {"name": "sgd", "lr": 1e-2}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The modes in which something is compiled; a backend that only captures does the work."""
    modes: list[Any] = []
    compile_ = torch.compile

    def capture(call: Any, *, mode: Any = None) -> Any:
        modes.append(mode)
        return compile_(call, backend="eager")

    monkeypatch.setattr(torch, "compile", capture)
    return modes


def trained(folder: Path, mode: Any) -> dict[str, torch.Tensor]:
    """The weights behind two steps in two parts each."""
    learner = learner_for(folder, train={"compile": mode, "fuse": "off" if not mode else "auto"}, optimizer=SGD)
    for step in range(2):
        learner.step(step, [learner.prepare(x) for x in samples(4).split(2)])
    return {name: value.clone() for name, value in learner.weights().items()}


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch's own look at the latent
def test_encoder_and_decoder_are_compiled_in_the_mode_that_is_asked_for(
    tmp_path: Path, asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    marked: list[None] = []
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: marked.append(None))
    wanted = trained(tmp_path, False)
    assert asked == []
    for mode, told in ((True, None), ("reduce-overhead", "reduce-overhead")):
        assert not marked
        found = trained(tmp_path, mode)
        assert asked == [told] * 2
        asked.clear()
        for name, value in wanted.items():
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)
    assert len(marked) == 4  # micro-batches, of the mode that has CUDA graphs


@pytest.mark.skipif(os.environ.get("FLEXVAE_NIGHTLY") != "1", reason="compiles for a minute")
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_what_the_compiler_makes_trains_as_the_plain_net_does(tmp_path: Path) -> None:
    wanted, found = trained(tmp_path, False), trained(tmp_path, "reduce-overhead")
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("mode", ["fast", 2, ""])
def test_another_mode_is_refused(tmp_path: Path, mode: Any) -> None:
    with pytest.raises(ValidationError, match="compile"):
        plan_for(tmp_path, train={"compile": mode})


@pytest.mark.parametrize("rest", [{"fuse": "on"}, {"activation_checkpointing": "blocks"}])
def test_a_mode_excludes_what_compiling_does(tmp_path: Path, rest: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match="has compile and"):
        plan_for(tmp_path, train={"compile": "reduce-overhead", **rest})


@pytest.mark.parametrize("mode", [True, False, "max-autotune"])
def test_a_checkpoint_keeps_the_mode(tmp_path: Path, mode: Any) -> None:
    plan = plan_for(tmp_path, train={"compile": mode})
    state = json.loads(json.dumps(run_state(plan, "", torch.device("cpu"), 0)))
    assert Settings.model_validate_json(json.dumps(state["settings"])).train.compile == mode
    assert "train.compile" not in FREE_KEYS  # a resumed run keeps it


def test_the_mode_can_be_given_on_the_command_line() -> None:
    path = Path(__file__).parents[1] / "configs/quickstart.toml"
    assert load_config(path, ["train.compile=reduce-overhead"]).settings.train.compile == "reduce-overhead"
    assert load_config(path, ["train.compile=true"]).settings.train.compile is True
    with pytest.raises(UsageError, match=r"train\.compile"):
        load_config(path, ["train.compile=fast"])
