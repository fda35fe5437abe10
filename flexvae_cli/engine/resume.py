"""Going on from a checkpoint: what may have changed, what must not, and what is put back."""

from __future__ import annotations

import json
import platform
from typing import Any

import torch
from pydantic import ValidationError

from flexvae_cli.config.settings import Settings
from flexvae_cli.engine.checkpoint import Checkpoint
from flexvae_cli.errors import ModelError, Problem, UsageError
from flexvae_cli.plan import Plan

FREE_TABLES = ("callbacks", "infer", "encode", "mem", "plugins")
FREE_KEYS = (
    "adversarial.discriminator",  # the structures themselves are compared, not where they lie
    "data.cache",
    "data.cache_dir",
    "data.max_bad",
    "data.source",  # the images are compared by name, not by where they lie; `changes` tells
    "data.timeout",
    "data.workers",
    "model.decoder",
    "model.encoder",
    "model.init",  # only a start reads it
    "train.accumulate",  # with the number of processes; `changes` tells what comes of it
    "train.activation_checkpointing",  # recomputes what it would have kept
    "train.allocator",
    "train.checkpoint_every",
    "train.checkpoint_minutes",
    "train.device",  # `changes` tells of another kind
    "train.disk_full_wait",
    "train.epochs",
    "train.fuse",  # the same up to rounding; `changes` tells
    "train.keep_last",
    "train.log_every",
    "train.max_steps",
    "train.preview_every",
    "train.run_dir",
    "train.validate_every",
)
"""What a resumed run may change; every other key decides what the weights become."""


def run_state(
    plan: Plan, fingerprint: str, device: torch.device, metrics_offset: int, processes: int = 1
) -> dict[str, Any]:
    """What `state.json` says beside the step."""
    return {
        "settings": plan.settings.model_dump(mode="json"),
        "discriminator": _discriminator(plan),
        "data": fingerprint,
        "environment": environment(device, processes),
        "metrics_offset": metrics_offset,
    }


def _discriminator(plan: Plan) -> Any:
    return plan.adversary.structure.document if plan.adversary else None


def environment(device: torch.device, processes: int = 1) -> dict[str, Any]:
    """What bit-identity holds within: library, types of machine and device, numbers of threads and processes."""
    return {
        "torch": torch.__version__,
        "machine": platform.machine(),
        "device": device.type,
        "threads": torch.get_num_threads(),
        "processes": processes,
    }


def require_same_run(plan: Plan, checkpoint: Checkpoint) -> None:
    """Refuse a config that would not continue the run but make another one of it.

    Raises:
        UsageError: every setting that differs, with both values.
    """
    before, now = flat(stored_settings(checkpoint)), flat(plan.settings.model_dump(mode="json"))
    problems = [
        Problem(f"{key} is {now.get(key)!r}, the run was started with {before.get(key)!r}")
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and key not in FREE_KEYS and key.partition(".")[0] not in FREE_TABLES
    ]
    described = plan.net.describe()
    structures = [(f"model.{part}", described[part], checkpoint.model.get(part)) for part in ("encoder", "decoder")]
    discriminator = _discriminator(plan)
    structures += [("adversarial.discriminator", discriminator, checkpoint.state.get("discriminator", discriminator))]
    problems += [
        Problem(f"the structure of the {key.partition('.')[2]} is not the one that the run was started with", key)
        for key, wanted, found in structures
        if wanted != found
    ]
    if problems:
        hint = "put them back to resume, or train in another train.run_dir"
        raise UsageError(*problems, Problem("a resumed run keeps its settings", str(checkpoint.path), hint=hint))


def changes(
    plan: Plan, checkpoint: Checkpoint, fingerprint: str, device: torch.device, processes: int = 1
) -> list[str]:
    """What is allowed to differ, but ends bit-identity with an uninterrupted run."""
    found = []
    stored, train = stored_settings(checkpoint)["train"], plan.settings.train
    if (stored["max_steps"], stored["epochs"]) != (train.max_steps, train.epochs) and _follows_length(plan):
        found.append("the schedule follows the number of steps, which has changed")
    if plan.settings.schedule.name == "plateau" and stored["validate_every"] != train.validate_every:
        found.append("the plateau schedule looks at validations, whose interval has changed")
    if checkpoint.state.get("data") != fingerprint:
        found.append("the training images are not the ones that the run was started with")
    fused = checkpoint.state["settings"]["train"].get("fuse", "off")  # earlier releases fused nothing
    if fused != train.fuse:
        found.append(f"train.fuse was '{fused}', is '{train.fuse}'")
    before = {"processes": 1, **checkpoint.state.get("environment", {})}  # earlier releases knew only one
    now = environment(device, processes)
    parts, were = train.accumulate * processes, stored["accumulate"] * before["processes"]
    if parts != were:
        found.append(f"a step was cut into {were} micro-batches, is cut into {parts}")
    found += [f"{key} was {before.get(key)}, is {now[key]}" for key in now if before.get(key) != now[key]]
    return found


def stored_settings(checkpoint: Checkpoint) -> dict[str, Any]:
    """The settings that the run was started with; what a later release added has its default.

    Raises:
        ModelError: they cannot be read.
    """
    try:
        stored = Settings.model_validate_json(json.dumps(checkpoint.state.get("settings")))
    except ValidationError as error:
        key = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise ModelError(f"the settings of the run are of another FlexVAE: {key}", where=str(checkpoint.path)) from None
    return stored.model_dump(mode="json")


def _follows_length(plan: Plan) -> bool:
    return plan.settings.schedule.name in ("cosine", "one-cycle")


def flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"train": {"seed": 0}}` -> `{"train.seed": 0}`."""
    result: dict[str, Any] = {}
    for key, value in settings.items():
        result |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return result
