"""Learners for tests: a tiny net, and settings as a config's tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from flexvae_cli.config import Config
from flexvae_cli.config.settings import Settings
from flexvae_cli.engine.build import build_vae
from flexvae_cli.engine.learner import Learner
from flexvae_cli.plan import Plan, make_plan

ENCODER = '["C2d_3_32_4_4", "VAERB_32_32", "C2d_32_LATENT_1"]'
DECODER = '["C2d_2_32_1", {"residual": ["VAERB_32_32"]}, "UpS_4", "C2d_32_3_3_1_1"]'


def plan_for(folder: Path, **tables: Any) -> Plan:
    """The plan of a config whose tables are `tables` on top of what a tiny net needs."""
    latent = "4" if tables.get("model", {}).get("bottleneck", "KL") == "KL" else "2"
    files = {"e.json": ENCODER.replace("LATENT", latent), "d.json": DECODER}
    for name, text in files.items():
        if not (folder / name).exists():
            (folder / name).write_text(text)
    base: dict[str, dict[str, Any]] = {
        "model": {"encoder": str(folder / "e.json"), "decoder": str(folder / "d.json")},
        "data": {"source": "builtin:scenery", "input": "3x16x16"},
        "loss": {},
        "optimizer": {"lr": 1e-2},
        "schedule": {"name": "constant"},
        "train": {"run_dir": str(folder / "run"), "max_steps": 100, "device": "cpu", "seed": 3},
    }
    document: dict[str, Any] = {**base}
    for name, values in tables.items():
        document[name] = {**base.get(name, {}), **values} if isinstance(values, dict) else values
    return make_plan(Config(Settings.model_validate(document), folder / "c.toml", document))


def learner_for(folder: Path, **tables: Any) -> Learner:
    """A learner of a tiny net whose weights are always the same."""
    plan = plan_for(folder, **tables)
    torch.manual_seed(0)
    vae = build_vae(plan.net, logits=plan.output == "logits")
    return Learner(plan, vae, plan.settings.train.max_steps or 100)


def samples(count: int = 5) -> torch.Tensor:
    """(count, 3, 16, 16) in [-1, 1], always the same."""
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(5)) * 2 - 1


def state_of(learner: Learner) -> dict[str, torch.Tensor]:
    """Everything that a checkpoint would hold, as copies."""
    return {k: v.detach().clone() for k, v in {**learner.weights(), **learner.tensors()}.items()}
