"""The nets, with all that one optimizer step changes, and that step: the trainer and `mem` call the same one.

There is no host synchronization in a step where the optimizer has a fused form: numbers stay on the device until they
are logged, and so does the answer to whether they are finite.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from flexvae_cli.engine.adversarial import Adversary, make_adversary
from flexvae_cli.engine.distributed import World
from flexvae_cli.engine.ema import Ema
from flexvae_cli.engine.forms import take_form
from flexvae_cli.engine.freezing import freeze
from flexvae_cli.engine.health import Health
from flexvae_cli.engine.losses.total import TotalLoss
from flexvae_cli.engine.optimizer import Optimization
from flexvae_cli.engine.parts import Part, collected
from flexvae_cli.engine.precision import Precision
from flexvae_cli.engine.randomness import seed_everything
from flexvae_cli.engine.schedule import Plateau, rate_factor
from flexvae_cli.engine.vae import VAE
from flexvae_cli.phases import Phase
from flexvae_cli.plan import Plan

if TYPE_CHECKING:
    from collections.abc import Mapping


class Learner:
    """The autoencoder and what trains it.

    Args:
        plan: what to do.
        vae: the net, with its first weights, on the device where it is to be trained.
        max_steps: the length of the run, which schedules follow.
        world: the processes that train it together; by default this one is alone.

    Raises:
        UsageError: the device cannot do what is asked for, or a pattern matches no parameter.
    """

    def __init__(self, plan: Plan, vae: VAE, max_steps: int, world: World | None = None) -> None:
        train = plan.settings.train
        self.world = world or World()
        self.plan, self.vae, self.max_steps = plan, vae, max_steps
        self.device = next(vae.parameters()).device
        self.precision = Precision(train.precision, self.device)
        self.layout = take_form(vae, train, self.precision)
        self._trained = frozenset(name for name, p in vae.named_parameters() if p.requires_grad)
        for phase in reversed(plan.phases):  # every pattern is tried before the first step; the first phase stays
            self._enter(phase)
        self.optimization = Optimization(vae, plan.settings.optimizer)
        self.adversary = make_adversary(plan, vae)
        for module in self.modules():
            self.world.share(module.state_dict().values())
        self.ema = Ema(vae, plan.settings.ema)  # of the weights as training starts from them
        self.plateau = Plateau(plan.settings.schedule)
        self.health = Health(self.device)

    def _enter(self, phase: Phase) -> None:
        self.phase = phase
        self._still = freeze(self.vae, phase.freeze, self._trained, f"{phase.where}.freeze")

    @cached_property
    def _losses(self) -> dict[int, TotalLoss]:
        """By the start of their phase; what they have in common, they share."""
        losses: dict[int, TotalLoss] = {}
        for phase in self.plan.phases:
            losses[phase.start] = TotalLoss(phase.terms, next(reversed(losses.values()), None))
        return losses

    def loss_at(self, step: int) -> TotalLoss:
        """The loss of the phase that a step belongs to."""
        return self._losses[self.plan.phase_at(step).start]

    def parts(self) -> Mapping[str, Part]:
        """All that is to be kept beside the weights."""
        parts: dict[str, Part] = {
            "optimizer": self.optimization,
            "weights": self.ema,
            "scale": self.precision.scale,
            "plateau": self.plateau,
            "health": self.health,
            "loss": self._losses[0],
        }
        if self.adversary is not None:
            parts["adversary"] = self.adversary
        return parts

    def tensors(self) -> dict[str, Tensor]:
        """`training.safetensors`: what only training needs."""
        return collected(self.parts())

    def weights(self) -> dict[str, Tensor]:
        """`model.safetensors`: what everything else reads, the running mean where there is one."""
        return self.ema.weights(self.vae.state_dict())

    @contextmanager
    def shown(self) -> Iterator[VAE]:
        """The net as everything but training sees it."""
        with self.ema.shown():
            yield self.vae

    def prepare(self, x: Tensor) -> Tensor:
        """Samples from the host, on the device and in the layout of the net."""
        return x.to(
            self.device, non_blocking=True, memory_format=self.layout if x.dim() == 4 else torch.preserve_format
        )

    def step(self, step: int, micro_batches: Sequence[Tensor], samples: int | None = None) -> dict[str, Tensor]:
        """One optimizer step over a batch that is cut into micro-batches.

        The gradient is that of the mean over all samples of the batch, however it is cut: a micro-batch weighs as many
        samples as it has, and several processes add up what they have. The global generators are re-seeded from
        (seed, step, k) before micro-batch k of all processes' together, so a step's result depends on weights, samples
        and these numbers alone.

        Args:
            step: its number, from 0.
            micro_batches: samples (b_k, c, *space) in [-1, 1] as `prepare` leaves them.
            samples: of the whole step, over all processes, where these are not all of them.

        Returns:
            `loss`, each of its terms, unweighted, and `gradient_norm`, before clipping: scalars on the device.
        """
        phase = self.plan.phase_at(step)
        if phase is not self.phase:
            self._enter(phase)
        self._train()
        self.optimization.zero_grad()
        adversary = self.adversary if self.adversary is not None and self.adversary.active(step) else None
        if adversary is not None:
            adversary.optimization.zero_grad()
        samples = samples or sum(len(x) for x in micro_batches)
        buffers = [(b, b.clone()) for module in self.modules() for b in module.buffers()]
        totals: dict[str, Tensor] = {}
        for k, x in enumerate(micro_batches):
            if isinstance(self.plan.settings.train.compile, str):  # CUDA graphs may use their memory again from here on
                torch.compiler.cudagraph_mark_step_begin()
            seed_everything(self.plan.settings.train.seed, step, k * self.world.size + self.world.rank)
            share = len(x) / samples
            for name, value in self._backward(x, share, step, adversary).items():
                part = value.detach() * share
                totals[name] = totals[name] + part if name in totals else part
        totals = self.world.sum_values(totals, idle=samples < self.world.size)
        bad = self._update(step, totals, adversary)
        for buffer, before in buffers:  # what a skipped batch did to running statistics did not happen either
            buffer.copy_(torch.where(bad, before, buffer))
        return totals

    def _train(self) -> None:
        self.vae.train()
        for module in self._still:
            module.eval()

    def _backward(self, x: Tensor, share: float, step: int, adversary: Adversary | None) -> dict[str, Tensor]:
        """The gradients of one micro-batch; returns its values."""
        scale = self.precision.scale.value
        with self.precision.autocast():
            batch = self.vae(x)
        values = self.loss_at(step)(batch, step)
        if adversary is not None:
            with self.precision.autocast():
                values |= adversary.generator_term(batch, values["loss"])
            values["loss"] = values["loss"] + values["adversarial_weight"] * values["adversarial"]
        (values["loss"] * share * scale).backward()
        if adversary is not None:
            with self.precision.autocast():
                fake = batch.reconstruction.detach()
                values |= adversary.discriminator_backward(x, fake, scale * share, step)
        return values

    def _update(self, step: int, totals: dict[str, Tensor], adversary: Adversary | None) -> Tensor:
        """Let the gradients of a whole step act, unless a number is not finite; returns whether one was not."""
        optimizations = [self.optimization] + ([adversary.optimization] if adversary is not None else [])
        scale = self.precision.scale
        bad = ~torch.isfinite(totals["loss"])
        for optimization, name in zip(optimizations, ("gradient_norm", "discriminator_gradient_norm"), strict=False):
            self.world.sum_gradients(optimization.named.values())
            scale.unscale(optimization.gradients())
            totals[name] = optimization.clip()
            bad = bad | ~torch.isfinite(totals[name])
        rate = rate_factor(step, self.plan.settings.schedule, self.max_steps) * self.plateau.factor
        for optimization in optimizations:
            optimization.step(rate, bad)
        self.world.mix(buffer for module in self.modules() for buffer in module.buffers())
        self.ema.update(step, bad)
        seen = {name: torch.where(bad, torch.nan, value) for name, value in totals.items()}  # nan is passed over
        self.loss_at(step).update(seen)
        if adversary is not None:
            adversary.update(seen)
        overflow = scale.expected(bad) & torch.isfinite(totals["loss"])
        self.health.add(step, bad & ~overflow)
        scale.update(bad)
        return bad

    def numbers(self) -> dict[str, float]:
        """For the log, what stands behind the steps' own values; the device is waited for."""
        found = {"skipped": int(self.health.total)} if int(self.health.total) else {}
        return {**found, **({"scale": float(self.precision.scale.value)} if self.precision.scale.enabled else {})}

    def describe(self) -> dict[str, Any]:
        """What the model file says of the weights beside the net itself."""
        decay = self.plan.settings.ema.decay
        return {"ema": decay} if decay else {}

    def modules(self) -> list[nn.Module]:
        """All nets that are trained."""
        return [self.vae] + ([self.adversary.module] if self.adversary is not None else [])
