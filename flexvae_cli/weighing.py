"""What the weights of an objective amount to, whatever a term sums or averages over."""

from __future__ import annotations

import math
from dataclasses import dataclass

from flexvae_cli.api import LossSpec
from flexvae_cli.api.trace import Shape
from flexvae_cli.objective import Term


@dataclass(frozen=True, slots=True)
class Weighed:
    """A term, and the factors that its weight means. Each is None where the reduction does not say.

    Attributes:
        reduction: of its loss, see `flexvae_cli.api.REDUCTIONS`; None where its plugin does not state it.
        per_pixel: the factor on the value of one element of a sample (one channel of one pixel).
        per_latent: the factor on the value of one element of its latent.
        per_sample: the factor on the value of one sample.
        beside_sums: its weight beside a reconstruction of weight 1, where both are summed over their elements.
        beside_means: its weight beside a reconstruction of weight 1, where both are averaged over their elements.
    """

    term: Term
    reduction: str | None
    per_pixel: float | None = None
    per_latent: float | None = None
    per_sample: float | None = None
    beside_sums: float | None = None
    beside_means: float | None = None


def weighed(terms: tuple[Term, ...], sample: Shape, latent: Shape) -> list[Weighed]:
    """Every term of an objective, at the weight that it has once its ramp is through.

    Args:
        terms: the reconstruction first.
        sample, latent: their shapes, (c, *space).
    """
    sizes = {"element": math.prod(sample), "latent": math.prod(latent)}
    sums, means = _factors(terms[0], sizes)
    return [_weighed(term, sizes, sums, means) for term in terms]


def _reduction(term: Term) -> str | None:
    spec = term.bound.spec
    return spec.reduction if isinstance(spec, LossSpec) else None


def _factors(term: Term, sizes: dict[str, int]) -> tuple[float | None, float | None]:
    """The factors on the sum of a sample's values, and on their mean; a value of the whole sample is its own sum."""
    reduction = _reduction(term)
    if reduction is None:
        return None, None
    what, _, summed = reduction.partition("-")
    count = sizes.get(what, 1)
    return (term.weight, term.weight * count) if summed else (term.weight / count, term.weight)


def _weighed(term: Term, sizes: dict[str, int], sums: float | None, means: float | None) -> Weighed:
    reduction = _reduction(term)
    of_sum, of_mean = _factors(term, sizes)
    if reduction is None or of_sum is None or of_mean is None:
        return Weighed(term, None)
    return Weighed(
        term,
        reduction,
        per_pixel=of_sum if reduction.startswith("element") else None,
        per_latent=of_sum if reduction.startswith("latent") else None,
        per_sample=term.weight,
        beside_sums=of_sum / sums if sums else None,
        beside_means=of_mean / means if means else None,
    )
