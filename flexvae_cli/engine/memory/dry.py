"""The trainer's own step, and a net's forward passes, on tensors without memory: what they would hold is followed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from flexvae_cli.engine.build import build_vae
from flexvae_cli.engine.distributed import Together, World
from flexvae_cli.engine.fusing import steps_of
from flexvae_cli.engine.fusing.graph import wanted_here
from flexvae_cli.engine.learner import Learner
from flexvae_cli.engine.memory.copies import copies
from flexvae_cli.engine.memory.phases import hardest
from flexvae_cli.engine.memory.semantics import CudaSemantics, on_meta
from flexvae_cli.engine.memory.standin import StandIn, standing_in
from flexvae_cli.engine.memory.tracker import Extras, Tracker, follow_layers
from flexvae_cli.engine.model import Model, in_use
from flexvae_cli.engine.optimizer import Optimization
from flexvae_cli.engine.place import Place
from flexvae_cli.engine.precision import Precision
from flexvae_cli.engine.vae import VAE
from flexvae_cli.errors import FlexVAEError, UsageError
from flexvae_cli.plan import Plan

Mode = Literal["train", "infer", "encode", "decode"]


@dataclass(frozen=True, slots=True)
class Ways:
    """How a device goes about it; by default as a CPU does.

    Attributes:
        cuda: whether operations take CUDA's ways.
        flash: whether it has flash attention.
        extras: what operations take beside their outputs.
        processes: that train together, each on a device of its own.
    """

    cuda: bool = False
    flash: bool = False
    extras: Extras | None = None
    processes: int = 1


class Pretended(Together):
    """A process among several that are not there: what it would send is made, and goes nowhere."""

    def __init__(self, processes: int, device: torch.device) -> None:
        World.__init__(self, Place(size=processes))
        self.device = device

    def greatest(self, *numbers: int) -> list[int]:
        return list(numbers)

    def from_first(self, value: Any) -> Any:
        return value

    def _start_sum(self, flat: Tensor) -> Callable[[], None]:  # noqa: ARG002
        return lambda: None

    def _broadcast(self, flat: Tensor) -> None:
        pass


def dry_step(plan: Plan, batch: int, ways: Ways = Ways(), device: str = "meta") -> Tracker:
    """Two training steps on meta tensors: the first makes the optimizer's state, the second needs it.

    Args:
        plan: with a precision and a layout that say what they are: `auto` is read as a CPU does.
        batch: samples of a micro-batch.
        ways: of the device that is asked for.
        device: `cpu` takes the steps for real, to compare.
    """
    with on_meta(CudaSemantics(ways.flash) if ways.cuda else None), _standing_in(device):
        vae = build_vae(plan.net, logits=plan.output == "logits", device=device).train()
        hard = hardest(plan)
        world = Pretended(ways.processes, torch.device(device)) if ways.processes > 1 else None
        learner = Learner(plan, vae, max_steps=hard.step + 3, world=world)
        tracker = Tracker(device, ways.extras if ways.cuda else copies)
        with tracker:
            shape = (plan.settings.train.accumulate, batch, *hard.shape)
            follow(tracker, learner)
            x = [learner.prepare(each) for each in torch.zeros(shape, device=device)]
            tracker.hold(x, "samples")
            for step in (hard.step, hard.step + 1):
                tracker.stage = "forward"
                with _told(tracker):
                    learner.step(step, x[:2])
                tracker.stage = "build"
            _hold_states(tracker, learner)
        _note_apart(tracker, vae)
    return tracker


def _standing_in(device: str) -> AbstractContextManager[None]:
    return standing_in() if device == "meta" else nullcontext()


def _note_apart(tracker: Tracker, vae: VAE) -> None:
    """Let a tracker know which layers were looked at apart, and which of them computed."""
    found = [m for m in vae.modules() if isinstance(m, StandIn)]
    tracker.apart = tuple(m.stands_for for m in found)
    tracker.computed = tuple(m.stands_for for m in found if m.computed)


@contextmanager
def _told(tracker: Tracker) -> Iterator[None]:
    """Say which entry it was that cannot be followed."""
    try:
        yield
    except FlexVAEError:
        raise
    except Exception as error:  # layers are strangers' code
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(
            f"cannot be followed without computing: {reason}",
            where=tracker.layers[-1] if tracker.layers else "the step",
            hint="measure it where the device is: flexvae mem --probe always",
        ) from error


def follow(tracker: Tracker, learner: Learner) -> None:
    """Let a tracker know what a learner's tensors are for."""
    entries = entries_of(learner.vae)
    if learner.adversary is not None:
        entries |= {f"discriminator.{key}": child for key, child in learner.adversary.module.named_children()}
        _mark_update(tracker, learner.adversary.optimization)
    _mark_update(tracker, learner.optimization)
    follow_layers(tracker, entries)
    for net in learner.modules():
        tracker.hold(_tensors(net), "parameters")
        for parameter in net.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(lambda p: _mark_gradient(tracker, p))
    _hold_states(tracker, learner)


def _hold_states(tracker: Tracker, learner: Learner) -> None:
    """What is kept from step to step beside the weights."""
    nets = {t.untyped_storage()._cdata for net in learner.modules() for t in _tensors(net)}
    kept = [t for t in learner.tensors().values() if t.untyped_storage()._cdata not in nets]
    tracker.hold(kept, "state")
    tracker.hold(learner.ema.mean.values(), "ema")


def _tensors(net: nn.Module) -> list[Tensor]:
    return [*net.parameters(), *net.buffers()]


def _mark_gradient(tracker: Tracker, parameter: Tensor) -> None:
    if parameter.grad is not None:
        tracker.hold([parameter.grad], "gradients")


def _mark_update(tracker: Tracker, optimization: Optimization) -> None:
    """The update begins with clipping."""
    clip = optimization.clip

    def clipped() -> Tensor:
        tracker.stage = "update"
        return clip()

    optimization.clip = clipped  # type: ignore[method-assign]


def entries_of(vae: VAE) -> dict[str, nn.Module]:
    """The entries of both structures, and the bottleneck; of those that compute as one, the last stands for all."""
    sides = {f"{side}.{names[-1]}": m for side in ("encoder", "decoder") for names, m in steps_of(getattr(vae, side))}
    return {**sides, "bottleneck": vae.bottleneck}


def dry_pass(plan: Plan, mode: Mode, batch: int, ways: Ways = Ways()) -> Tracker:
    """What `flexvae infer`, `encode` or `decode` do with a batch, on meta tensors.

    Args:
        plan: its precision is taken; of the rest of `[train]` nothing counts here.
        mode: what to do, not `train`.
        batch: samples.
    """
    with on_meta(CudaSemantics(ways.flash) if ways.cuda else None), standing_in():
        vae = build_vae(plan.net, logits=plan.output == "logits", device="meta").eval()
        precision = Precision(plan.settings.train.precision, torch.device("meta"))
        fuse = wanted_here("auto")
        in_use(vae, "off" if ways.cuda and fuse == "auto" else fuse, precision.dtype)  # as `auto` is there, see `rules`
        model = Model(vae, plan.net, {}, Path(), "")
        acts: dict[str, Callable[[Any], Any]] = {
            "infer": model.forward,
            "encode": model.encode,
            "decode": model.decode,
        }
        tracker = Tracker(extras=ways.extras if ways.cuda else copies)
        with torch.inference_mode(), precision.autocast() if precision.dtype else nullcontext(), tracker:
            tracker.hold(_tensors(vae), "parameters")
            follow_layers(tracker, entries_of(vae))
            shape = plan.bottleneck.gives if mode == "decode" else plan.net.shape
            x = torch.empty(batch, *shape, device="meta")
            tracker.hold([x], "samples")
            tracker.stage = "forward"
            with _told(tracker):
                acts[mode](x)
        _note_apart(tracker, vae)
    return tracker


def by_category(blocks: Iterable[Any]) -> dict[str, int]:
    """Bytes by what they are for."""
    found: dict[str, int] = {}
    for block in blocks:
        found[block.category] = found.get(block.category, 0) + block.bytes
    return found


def by_layer(blocks: Iterable[Any]) -> dict[str, int]:
    """Bytes of activations by the entry that keeps them; empty stands for the loss."""
    found: dict[str, int] = {}
    for block in blocks:
        if block.category == "activations":
            found[block.layer] = found.get(block.layer, 0) + block.bytes
    return found
