"""A step whose numbers were not finite, taken once more: which layer was the first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flexvae_cli.api import Batch
from flexvae_cli.config import Config
from flexvae_cli.config.settings import Settings
from flexvae_cli.engine.build import build_vae
from flexvae_cli.engine.checkpoint import Checkpoint, read_checkpoint
from flexvae_cli.engine.data.loader import training_batches
from flexvae_cli.engine.device import choose_device, settle
from flexvae_cli.engine.distributed import World
from flexvae_cli.engine.learner import Learner
from flexvae_cli.engine.losses.total import TotalLoss
from flexvae_cli.engine.nonfinite import FORMAT, names_of
from flexvae_cli.engine.precision import set_determinism
from flexvae_cli.engine.reading import read_json
from flexvae_cli.engine.resume import stored_settings
from flexvae_cli.engine.rundir import RunDirectory, step_directories, step_of
from flexvae_cli.engine.source import open_source
from flexvae_cli.engine.starting import sampler_of
from flexvae_cli.engine.trainer import Trainer
from flexvae_cli.errors import ModelError
from flexvae_cli.plan import Plan, make_plan


@dataclass(frozen=True)
class Finding:
    """Where numbers were not finite first.

    Attributes:
        layer: its place in the net, as in `encoder.3`, or the name of a term of the loss.
        code: of the layer; empty where it is no layer.
        what: `output`, `gradient` of the output, `weight gradient`, or `value` of a term.
        micro_batch: its number in the step, from 0.
    """

    layer: str
    code: str
    what: str
    micro_batch: int


@dataclass(frozen=True)
class Replayed:
    """What the second time showed.

    Attributes:
        step: counted from 1, as the log counts.
        started_from: the checkpoint that training went on from.
        images: of the micro-batch of the finding, else of all.
        finding: None where all numbers were finite this time.
    """

    step: int
    started_from: Path
    images: list[str]
    finding: Finding | None


def replay(report: Path, device: str | None, tell: Callable[[int, int], object]) -> Replayed:
    """Go on from the last checkpoint before a skipped step, and take that step under watch; nothing is written.

    Args:
        report: `nan-step-K.json` in a run directory.
        device: where; by default as the run's config says.
        tell: is told how many of how many steps are done.

    Raises:
        ModelError: it is no such report, or no checkpoint before that step is left.
        FlexVAEError: as in training.
    """
    content = _read(report)
    step = content["step"]
    checkpoint = _checkpoint_before(report.parent, step)
    plan = _plan_of(checkpoint, report.parent, content, device)
    trainer = _trainer(plan, report.parent, checkpoint)
    learner, watch = trainer.learner, Watch()
    for now, micro_batches in _micro_batches(trainer, checkpoint.step, step):
        tell(now - checkpoint.step, step + 1 - checkpoint.step)
        if now < step:
            learner.step(now, micro_batches)
        else:
            with watch.over(learner, plan.net.codes):
                values = learner.step(now, micro_batches)
            watch.loss(values)
    names = names_of(step, trainer.sampler, trainer.source)
    chosen = names if watch.found is None else names[watch.found.micro_batch : watch.found.micro_batch + 1]
    return Replayed(step + 1, checkpoint.path, [name for part in chosen for name in part], watch.found)


def _read(report: Path) -> dict[str, Any]:
    content = read_json(report)
    if content.get("format") != FORMAT or type(content.get("step")) is not int:
        raise ModelError("is no report of a skipped step", where=str(report), hint="give RUN/nan-step-....json")
    if type(content.get("parts")) is not int or type(content.get("max_steps")) is not int:
        raise ModelError("does not say how its step was cut", where=str(report), hint="give RUN/nan-step-....json")
    return content


def _checkpoint_before(run: Path, step: int) -> Checkpoint:
    """The newest whole checkpoint at or before a step: an earlier state, from which that step follows."""
    for path in step_directories(run / "ckpt"):
        if (step_of(path) or 0) <= step:
            return read_checkpoint(path)
    hint = "the next time, keep more of them with train.keep_last"
    raise ModelError(f"no checkpoint before step {step + 1} is left", where=str(run), hint=hint)


def _plan_of(checkpoint: Checkpoint, run: Path, content: dict[str, Any], device: str | None) -> Plan:
    """The run's own plan at that step, for one process that computes what all of them did."""
    document = stored_settings(checkpoint)
    document["train"] |= {"accumulate": content["parts"], "max_steps": content["max_steps"], "epochs": None}
    document["train"]["compile"] = False  # compiled parts cannot be looked into
    document["train"]["device"] = device or document["train"]["device"]
    settings = Settings.model_validate(document)
    return make_plan(Config(settings, run / "config.json", document))


def _trainer(plan: Plan, run: Path, checkpoint: Checkpoint) -> Trainer:
    train, data = plan.settings.train, plan.settings.data
    settle(train.allocator)
    device = choose_device(train.device)
    set_determinism(train.deterministic, device)
    source = open_source(data, train.seed, [phase.shapes for phase in plan.phases])
    sampler = sampler_of(plan, source.training, checkpoint.step, World())
    vae = build_vae(plan.net, logits=plan.output == "logits").to(device)
    learner = Learner(plan, vae, sampler.max_steps)
    trainer = Trainer(plan, RunDirectory(run, resume=True), source, learner, sampler)
    trainer.restore(checkpoint)
    return trainer


def _micro_batches(trainer: Trainer, start: int, step: int) -> Iterator[tuple[int, list[Tensor]]]:
    """The steps from `start` up to and with `step`, each with its samples on the device."""
    for now in range(start, step + 1):
        images = trainer.source.training_at(trainer.plan.phase_at(now).shapes)
        sampler = replace(trainer.sampler, start_step=now, max_steps=now + 1)
        yield now, [trainer.learner.prepare(batch.x) for batch in training_batches(images, sampler, workers=0)]


@dataclass
class Watch:
    """Looks at every output and every gradient of a net, and remembers the first that is not finite."""

    found: Finding | None = None
    micro_batch: int = -1
    codes: dict[str, str] = field(default_factory=dict)

    @contextmanager
    def over(self, learner: Learner, codes: dict[str, str]) -> Iterator[None]:
        """While held, every pass through the net is looked at."""
        self.codes = codes
        handles = [learner.vae.register_forward_pre_hook(self._next)]
        loss_at = learner.loss_at
        learner.loss_at = lambda step: _Watched(loss_at(step), self)  # type: ignore
        for name, module in learner.vae.named_modules():
            handles.append(module.register_forward_hook(self._seen(name)))
        for name, parameter in learner.vae.named_parameters():
            if parameter.requires_grad:
                handles.append(parameter.register_hook(self._gradient(name.rpartition(".")[0], "weight gradient")))
        try:
            yield
        finally:
            del learner.loss_at  # the class's own again
            for handle in handles:
                handle.remove()

    def loss(self, values: dict[str, Tensor]) -> None:
        """Where the net was sound, a term of the loss may not have been; looked at before its gradient is."""
        for name, value in values.items():
            if not bool(torch.isfinite(value)):
                self._note(name, "value")

    def _next(self, *_: Any) -> None:
        self.micro_batch += 1

    def _seen(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:  # noqa: ARG001
            for tensor in _tensors(output):
                self._check(name, "output", tensor)
                if tensor.requires_grad:
                    tensor.register_hook(self._gradient(name, "gradient"))

        return hook

    def _gradient(self, name: str, what: str) -> Callable[[Tensor], None]:
        return lambda gradient: self._check(name, what, gradient)

    def _check(self, name: str, what: str, tensor: Tensor) -> None:
        if self.found is None and not bool(torch.isfinite(tensor).all()):
            self._note(name, what)

    def _note(self, name: str, what: str) -> None:
        if self.found is None:
            code = next((self.codes[k] for k in _upwards(name) if k in self.codes), "")
            self.found = Finding(name or "loss", code, what, max(0, self.micro_batch))


class _Watched:
    """A loss whose values are looked at as soon as they are there."""

    def __init__(self, loss: TotalLoss, watch: Watch) -> None:
        self.inner, self.watch = loss, watch

    def __call__(self, batch: Batch, step: int) -> dict[str, Tensor]:
        values = self.inner(batch, step)
        self.watch.loss({name: value for name, value in values.items() if name != "loss"})
        return values

    def update(self, values: dict[str, Tensor]) -> None:
        self.inner.update(values)


def _upwards(name: str) -> Iterator[str]:
    """`a.b.c`, `a.b`, `a`: a layer's own modules belong to its code."""
    while name:
        yield name
        name = name.rpartition(".")[0]


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, (tuple, list)):
        for each in output:
            yield from _tensors(each)
