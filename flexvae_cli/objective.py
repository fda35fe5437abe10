"""The objective of training, from `[loss]`: which terms, with which weights, from which step on."""

from __future__ import annotations

from dataclasses import dataclass

from flexvae_cli.codes import Bound
from flexvae_cli.config.settings import LossTable
from flexvae_cli.errors import Problem
from flexvae_cli.net import Net
from flexvae_cli.registry import Registry
from flexvae_cli.structure import bind_code

SSIM_WINDOW = 11
LOSSES_OF_OTHER_KEYS = {"kld": "loss.kld_weight", "ssim": "loss.ssim_metrics", "sparse": "loss.sparse_metrics"}


@dataclass(frozen=True)
class Term:
    """One term of the total loss: `weight * loss`."""

    name: str
    bound: Bound
    weight: float


def terms_of(
    loss: LossTable, shape: tuple[int, ...], registry: Registry, net: Net | None, problems: list[Problem]
) -> tuple[Term, ...]:
    """The seed's formula: alpha * reconstruction + kld_weight * KLD + ssim * beta * (1 - SSIM) + sparse.

    Args:
        loss: the table.
        shape: of a training sample, (c, *space).
        net: the autoencoder; None where it could not be read.
        problems: what is wrong is added to them.
    """
    wanted = [("reconstruction", loss.reconstruction, loss.alpha)]
    if net is None or net.bottleneck.spec.name == "KL":
        wanted.append(("kld", "kld", loss.kld_weight))
    elif "kld_weight" in loss.model_fields_set and loss.kld_weight:
        problems.append(Problem(f"loss.kld_weight wants a KL bottleneck; this one is {net.bottleneck.code}"))
    if loss.ssim_metrics:
        wanted.append(("ssim", "ssim", loss.beta))
        if min(shape[1:]) < SSIM_WINDOW:
            problems.append(Problem(f"loss.ssim_metrics wants sides of at least {SSIM_WINDOW} pixels in data.input"))
    if loss.sparse_metrics:
        wanted.append(("sparse", "sparse", 1.0))
    terms = []
    for name, code, weight in wanted:
        bound = bind_code(code, "loss", registry, f"loss.{name}", problems, {})
        if bound is None:
            continue
        terms.append(Term(name, bound, weight))
        if name == "reconstruction" and (key := LOSSES_OF_OTHER_KEYS.get(bound.spec.name)) is not None:
            problems.append(Problem(f"'{code}' does not compare samples; it has {key}", "loss.reconstruction"))
    return tuple(terms)
