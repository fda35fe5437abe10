"""The discriminator and what trains it: what one optimizer step asks of it, and its state."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from flexvae_cli.adversary import AdversaryPlan
from flexvae_cli.api import Batch
from flexvae_cli.config.settings import AdversarialTable
from flexvae_cli.engine.adversarial.balance import Known, gradient_ratio, last_layer
from flexvae_cli.engine.adversarial.losses import LOSSES
from flexvae_cli.engine.adversarial.regularization import LeCam, r1_penalty
from flexvae_cli.engine.build import build_sequence
from flexvae_cli.engine.optimizer import Optimization, matching
from flexvae_cli.engine.randomness import seed_of
from flexvae_cli.engine.vae import VAE
from flexvae_cli.errors import UsageError

if TYPE_CHECKING:
    from flexvae_cli.plan import Plan


class Adversary:
    """The discriminator's side of adversarial training; a part of the run's state.

    It sees samples in [-1, 1] as they are trained on, and reconstructions in the same range, neither clamped nor
    augmented. Both nets learn from every batch, from step `table.start` on: `generator_term`, then
    `discriminator_backward`, for every micro-batch; then `optimization` takes its step, and `update` is called.
    The forward passes run under the caller's autocast; losses and penalties are computed in fp32.

    Args:
        plan: what `[adversarial]` asks for.
        vae: the autoencoder, on its device.
        seed: of the run. The discriminator's weights follow from it alone, and drawing them moves no other generator.

    Raises:
        UsageError: the R1 penalty cannot be computed for this discriminator, or a factory refuses its arguments.
    """

    def __init__(self, plan: AdversaryPlan, vae: VAE, seed: int) -> None:
        self.table = plan.table
        self.vae = vae
        device = next(vae.parameters()).device
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(seed, "discriminator"))
            self.module = build_sequence(plan.structure.expanded()).to(device).train()
            if self.table.r1:
                _require_r1(self.module, torch.zeros(1, *plan.trace.takes, device=device))
        self.optimization = Optimization(self.module, self.table.optimizer, "adversarial.optimizer")
        self.loss = LOSSES[self.table.loss]
        self.lecam = LeCam(device) if self.table.lecam else None

    def active(self, step: int) -> bool:
        """Whether step `step`, counted from 0, is adversarial."""
        return step >= self.table.start

    def generator_term(self, batch: Batch, other_loss: Tensor) -> dict[str, Tensor]:
        """The adversarial loss of the autoencoder; the discriminator's gradients are left alone.

        Args:
            batch: with the graph of the autoencoder.
            other_loss: the sum of all other terms, with its graph; adaptive weights are measured against it.

        Returns:
            `adversarial`, unweighted, with its gradient by the autoencoder, and `adversarial_weight`, a scalar without
            one. Their product is to be added to the total.
        """
        fake = batch.reconstruction.detach().requires_grad_()
        with _frozen(self.module):
            logits = self.module(fake).float()
        with _fp32(fake):
            loss = self.loss.generator(logits)
            # The gradient is taken now, and the discriminator's graph is gone before the autoencoder's backward pass.
            # That of a sum over the logits does not vanish in fp16, as that of their mean can.
            (gradient,) = torch.autograd.grad(loss * logits.numel(), fake)
            gradient = gradient / logits.numel()
            weight = torch.full_like(loss.detach(), self.table.weight)
            if self.table.adaptive:
                last = last_layer(self.vae)
                weight = weight * gradient_ratio(batch, other_loss, gradient, last, self.table.max_weight)
            term = Known.apply(batch.reconstruction, loss.detach(), gradient)
        return {"adversarial": term, "adversarial_weight": weight}

    def discriminator_backward(
        self, x: Tensor, reconstruction: Tensor, share: float | Tensor, step: int
    ) -> dict[str, Tensor]:
        """Add the gradient of one micro-batch to the discriminator's; no other gradient changes.

        Args:
            x: samples (b, c, *space) in [-1, 1].
            reconstruction: of the same shape; taken without its graph.
            share: factor on the loss: the micro-batch's part of all samples, times the scale of the loss.
            step: the optimizer step.

        Returns:
            `discriminator`, its adversarial loss; `logits_real` and `logits_fake`, means; and of the regularizations
            in use `lecam` and, in the steps that have it, `r1`: unweighted scalars without graph.
        """
        x = x.detach()
        real, fake = self.module(x).float(), self.module(reconstruction.detach()).float()
        with _fp32(x):
            loss = self.loss.discriminator(real, fake)
            values = {"discriminator": loss, "logits_real": real.mean(), "logits_fake": fake.mean()}
            if self.lecam is not None:
                values["lecam"] = self.lecam(real, fake)
                loss = loss + self.table.lecam * values["lecam"]
            (loss * share).backward()
            if self._r1_due(step):
                values["r1"] = r1_penalty(self.module, x)
                (values["r1"] * (self.table.r1 * self.table.r1_every) * share).backward()
        return {name: value.detach() for name, value in values.items()}

    def _r1_due(self, step: int) -> bool:
        """In the first adversarial step, and in every `r1_every`-th from there."""
        return bool(self.table.r1) and (step - self.table.start) % self.table.r1_every == 0

    def update(self, values: Mapping[str, Tensor]) -> None:
        """Take in what a step's calls of `discriminator_backward` returned, as means over the whole batch."""
        if self.lecam is not None:
            self.lecam.update(values["logits_real"], values["logits_fake"])

    def tensors(self) -> dict[str, Tensor]:
        """`net.NAME`, `optimizer.PARAMETER.NAME`, and `lecam.NAME` where that is in use."""
        parts = {"net": self.module.state_dict(), "optimizer": self.optimization.tensors()}
        if self.lecam is not None:
            parts["lecam"] = self.lecam.tensors()
        return {f"{part}.{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """The way back from `tensors`.

        Raises:
            ValueError: they do not fit.
        """
        parts: dict[str, dict[str, Tensor]] = defaultdict(dict)
        for key, tensor in tensors.items():
            part, _, name = key.partition(".")
            parts[part][name] = tensor
        if unknown := parts.keys() - {"net", "optimizer", "lecam"}:
            raise ValueError(f"there is no {min(unknown)} in it")
        net = self.module.state_dict()
        if {n: t.shape for n, t in parts["net"].items()} != {n: t.shape for n, t in net.items()}:
            raise ValueError("it has another discriminator")
        if parts["lecam"] and self.lecam is None:
            raise ValueError("it was trained with LeCam regularization")
        if self.lecam is not None:
            self.lecam.restore(parts["lecam"])
        self.module.load_state_dict(parts["net"])
        self.optimization.restore(parts["optimizer"])


def make_adversary(plan: Plan, vae: VAE) -> Adversary | None:
    """The adversary of a plan, with fresh weights; None where the plan has none.

    Raises:
        UsageError: the discriminator cannot be built, or the adaptive weight cannot be measured: the decoder is
            compiled, or in some phase has no layer to measure it at.
    """
    if plan.adversary is None:
        return None
    if plan.adversary.table.adaptive:
        _require_measurable(plan, plan.adversary.table, vae)
    return Adversary(plan.adversary, vae, plan.settings.train.seed)


def _require_measurable(plan: Plan, table: AdversarialTable, vae: VAE) -> None:
    """The decoder's graph is open, and every phase with the adversary trains a layer that `last_layer` can find."""
    if plan.settings.train.compile:
        raise UsageError(  # torch frees a compiled graph's buffers in its first backward pass
            "the adaptive weight wants gradients at the decoder's last layer, which train.compile closes up",
            where="adversarial.adaptive",
            hint="set adversarial.adaptive = false, or train.compile = false",
        )
    names = [name for name, _ in vae.named_parameters()]
    for phase in plan.phases:
        if phase is plan.phase_at(table.start) or phase.start > table.start:
            last_layer(vae, matching(names, phase.freeze, f"{phase.where}.freeze"))


def _require_r1(module: nn.Module, x: Tensor) -> None:
    """Try the R1 penalty on one sample: it may be due for the first time after days."""
    try:
        r1_penalty(module.eval(), x).backward()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise UsageError(
            f"the R1 penalty cannot be computed for this discriminator: {str(error).splitlines()[0]}",
            where="adversarial.r1",
            hint="layers must be differentiable twice; change them, or set adversarial.r1 = 0",
        ) from None
    module.train().zero_grad(set_to_none=True)


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """While held, the module's parameters want no gradient, and nothing is kept for one."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def _fp32(x: Tensor) -> torch.autocast:
    """Where losses and gradients are computed, whatever the caller's autocast."""
    return torch.autocast(x.device.type, enabled=False)
