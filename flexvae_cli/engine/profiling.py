"""Where the time of a training step goes: by what is done, and by layer."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from flexvae_cli.api import Encoded
from flexvae_cli.engine.data.loader import training_batches
from flexvae_cli.engine.files import writing
from flexvae_cli.engine.fusing import steps_of
from flexvae_cli.engine.learner import Learner
from flexvae_cli.engine.memory.forecaster import codes_of
from flexvae_cli.engine.rundir import RunDirectory
from flexvae_cli.engine.starting import Materials, prepare
from flexvae_cli.engine.trainer import Trainer
from flexvae_cli.engine.vae import VAE
from flexvae_cli.plan import Plan

WARM, TIMED, TRACED = 3, 6, 2  # steps: the first make kernels and take memory, the last are slowed by being traced
STAGES = ("data", "forward", "loss", "backward", "optimizer", "other")


@dataclass(frozen=True, slots=True)
class LayerTime:
    """A layer's part of a step, in seconds.

    Attributes:
        code: of the layer, or of those that compute as one, with ` + ` between.
        entries: how many there are in the net.
    """

    code: str
    entries: int
    forward: float
    backward: float


@dataclass(frozen=True, slots=True)
class Profile:
    """What was found.

    Attributes:
        steps: that were timed.
        seconds: of one step, waiting for data included.
        stages: seconds of one step, by `STAGES`.
        layers: by their time, the longest first.
        trace: a file for https://ui.perfetto.dev or chrome://tracing, of further steps.
    """

    steps: int
    seconds: float
    stages: dict[str, float]
    layers: tuple[LayerTime, ...]
    trace: Path


class Stopwatch:
    """Gives every moment to what is being done then, by a stage and a layer of it.

    Args:
        device: it is waited for at every change, so that work that is queued counts where it was asked for.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.reset()

    def reset(self) -> None:
        """Forget everything; the clock starts."""
        self.spent: defaultdict[tuple[str, str], float] = defaultdict(float)
        self._now, self._since = ("other", ""), time.perf_counter()

    def turn(self, stage: str, layer: str = "") -> None:
        """What comes next."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        moment = time.perf_counter()
        self.spent[self._now] += moment - self._since
        self._now, self._since = (stage, layer), moment


def profile_training(plan: Plan, materials: Materials, tell: Callable[[int, int], object]) -> Profile:
    """Take a few steps as training does, from fresh weights; no run is begun, and nothing but the trace is written.

    Args:
        plan: what to do.
        materials: what `gather` found for it.
        tell: is told how many of how many steps are done.

    Raises:
        FlexVAEError: as in training.
    """
    run = plan.settings.train.run_dir
    trainer, _, _ = prepare(plan, materials, RunDirectory(run), resume=False)
    learner, watch = trainer.learner, Stopwatch(trainer.learner.device)
    follow(learner, watch)
    batches = _steps(trainer, watch)
    total = WARM + TIMED + TRACED
    for done in range(WARM + TIMED):
        if done == WARM:
            watch.reset()
        learner.step(done, next(batches))
        watch.turn("other")
        tell(done + 1, total)
    spent = {key: seconds / TIMED for key, seconds in watch.spent.items()}
    path = run.with_name(f"{run.name}-profile.json")
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the tracer tells of every GPU that is not there
    kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (learner.device.type == "cuda")
    with profile(activities=kinds) as traced:
        for done in range(WARM + TIMED, total):
            learner.step(done, next(batches))
            watch.turn("other")
            tell(done + 1, total)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        traced.export_chrome_trace(str(path))
    stages = {stage: sum(s for (kind, _), s in spent.items() if kind == stage) for stage in STAGES}
    return Profile(TIMED, sum(stages.values()), stages, _layers(spent, called(learner.vae, codes_of(plan))), path)


def _steps(trainer: Trainer, watch: Stopwatch) -> Iterator[list[Tensor]]:
    """The micro-batches of step after step; the time until they are there is that of the data."""
    data, learner = trainer.plan.settings.data, trainer.learner
    sampler = replace(trainer.sampler, start_step=0, max_steps=WARM + TIMED + TRACED)
    on_gpu = learner.device.type == "cuda"
    stream = training_batches(trainer.source.training, sampler, workers=data.workers, pin_memory=on_gpu)
    for step in range(sampler.max_steps):
        watch.turn("data")
        count = len(list(sampler.step_sizes(step)))
        batches = [learner.prepare(batch.x) for batch in islice(stream, count)]
        watch.turn("other")
        yield batches


def called(vae: VAE, codes: dict[str, str]) -> dict[str, tuple[nn.Module, str]]:
    """What is called for the entries of a net, by the name of the last of those that compute as one, and its codes."""
    found: dict[str, tuple[nn.Module, str]] = {}
    for side in ("encoder", "decoder"):
        for names, module in steps_of(getattr(vae, side)):
            keys = [f"{side}.{name}" for name in names]
            found[keys[-1]] = module, " + ".join(codes[key] for key in keys)
    return {**found, "bottleneck": (vae.bottleneck, codes["bottleneck"])}


def follow(learner: Learner, watch: Stopwatch) -> None:
    """Let a stopwatch know what a learner does."""
    learner.vae.register_forward_pre_hook(lambda *_: watch.turn("forward"))
    learner.vae.register_forward_hook(lambda *_: watch.turn("loss"))
    for side in ("encoder", "decoder"):
        for names, module in steps_of(getattr(learner.vae, side)):
            _follow_layer(module, f"{side}.{names[-1]}", watch)
    _follow_layer(learner.vae.bottleneck, "bottleneck", watch)
    clip = learner.optimization.clip

    def clipped() -> Tensor:  # the update begins with it
        watch.turn("optimizer")
        return clip()

    learner.optimization.clip = clipped  # type: ignore[method-assign]


def _follow_layer(module: nn.Module, name: str, watch: Stopwatch) -> None:
    def leave(module: nn.Module, inputs: Any, output: Any) -> None:  # noqa: ARG001
        watch.turn("forward")
        tensor = output.z if isinstance(output, Encoded) else output
        if isinstance(tensor, Tensor) and tensor.requires_grad:  # its gradient is there: the layer's own comes next
            tensor.register_hook(lambda _: watch.turn("backward", name))

    module.register_forward_pre_hook(lambda *_: watch.turn("forward", name))
    module.register_forward_hook(leave)


def _layers(spent: dict[tuple[str, str], float], entries: dict[str, tuple[nn.Module, str]]) -> tuple[LayerTime, ...]:
    """By code; what a backward pass does beside the layers belongs to none."""
    times: dict[str, list[float]] = {}
    for name, (_, code) in entries.items():
        each = [1.0, spent.get(("forward", name), 0.0), spent.get(("backward", name), 0.0)]
        times[code] = [a + b for a, b in zip(times.get(code, [0.0] * 3), each, strict=True)]
    found = (LayerTime(code, int(count), forward, backward) for code, (count, forward, backward) in times.items())
    return tuple(sorted(found, key=lambda layer: -layer.forward - layer.backward))
