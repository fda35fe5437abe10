"""The whole loss: the weighted sum of the terms of an objective, at a step."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from flexvae_cli.api import Batch
from flexvae_cli.engine.losses.controller import RateController
from flexvae_cli.engine.losses.latent import own_loss, rate
from flexvae_cli.objective import Term


class TotalLoss:
    """The weighted sum of a plan's terms; every term is returned by itself, unweighted, for the log.

    Args:
        terms: of the objective, their names distinct.
        before: the loss of the phase before: what both have in common, such as the net of LPIPS, is built once, and
            the KL weight goes on where it was.
    """

    def __init__(self, terms: Iterable[Term], before: TotalLoss | None = None) -> None:
        self.terms = tuple(terms)
        self.controller: RateController = before.controller if before else RateController()
        self._target = next((term for term in self.terms if term.target is not None), None)
        built = list(zip(before.terms, before.functions, strict=True)) if before else []
        self.functions: tuple[Callable[[Batch], Tensor], ...] = tuple(
            next((function for other, function in built if other.bound == term.bound), None) or term.bound.build()
            for term in self.terms
        )

    def __call__(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """The values at a step, scalars: `{"loss": total, "reconstruction": ..., ...}`, each with its gradient.

        A term is left out before the step at which it starts. Where a rate is held, `rate` and `kld_weight` are there
        too, and what quantizers tell of themselves (`bottleneck.usage`), without gradients.
        """
        values: dict[str, Tensor] = {}
        weighted: list[Tensor] = []
        for term, function in zip(self.terms, self.functions, strict=True):
            if term.counts_at(step):
                values[term.name] = function(batch)
                weighted.append(self._weight(term, step, batch) * values[term.name])
        if batch.encoded.loss is not None and "bottleneck" not in values:  # of a layer that did not announce it
            values["bottleneck"] = own_loss(batch)
            weighted.append(values["bottleneck"])
        if self._target is not None:
            values |= {"rate": rate(batch), "kld_weight": self.controller.weight(self._target.weight, batch.x)}
        return {"loss": torch.stack(weighted).sum(), **values, **batch.encoded.stats}

    def _weight(self, term: Term, step: int, batch: Batch) -> Tensor | float:
        return self.controller.weight(term.weight, batch.x) if term.target is not None else term.weight_at(step)

    def update(self, values: dict[str, Tensor]) -> None:
        """Take in the mean values of an optimizer step."""
        if self._target is not None and self._target.target is not None:
            self.controller.update(values["rate"], self._target.target)

    def tensors(self) -> dict[str, Tensor]:
        return self.controller.tensors()

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take back what `tensors` gave.

        Raises:
            ValueError: it does not fit.
        """
        self.controller.restore(tensors)
