"""The discriminator of adversarial training, read and traced at the training shape, without torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from flexvae_cli.api.trace import Shape, text
from flexvae_cli.config.settings import AdversarialTable
from flexvae_cli.errors import Problem, UsageError
from flexvae_cli.paths import shown
from flexvae_cli.registry import Registry
from flexvae_cli.structure import Item, Structure, leaves, read_structure
from flexvae_cli.tracing import Fallback, Trace, trace


@dataclass(frozen=True)
class AdversaryPlan:
    """What `[adversarial]` asks for.

    Attributes:
        table: the settings.
        structure: the discriminator.
        trace: of the discriminator at the first training shape; what it gives are logits, (k, *space).
    """

    table: AdversarialTable
    structure: Structure
    trace: Trace

    @property
    def parameters(self) -> int:
        return self.trace.parameters


def adversary_of(
    table: AdversarialTable | None,
    shapes: Iterable[Shape],
    registry: Registry,
    fallback: Fallback | None,
    problems: list[Problem],
) -> AdversaryPlan | None:
    """Read the discriminator and follow a sample through it.

    Args:
        table: the settings; None where training is not adversarial.
        shapes: of the training samples, (c, *space), in the order in which a run comes by them; at least one.
        registry: the installed specs.
        fallback: measures layers that have no static rule.
        problems: what is wrong is added to them.

    Returns:
        None where there is none, or where it cannot be used.
    """
    if table is None:
        return None
    try:
        structure = read_structure(table.discriminator, registry, shown(table.discriminator))
    except UsageError as error:
        problems += error.problems
        return None
    items = structure.expanded()
    found = _quantizers(items)
    traces = [_traced(items, shape, fallback, found) for shape in dict.fromkeys(shapes)]
    if not found and traces[0].parameters == 0:
        found.append(Problem("has nothing to train; a discriminator needs layers with weights", structure.name))
    problems += found
    return None if found else AdversaryPlan(table, structure, traces[0])


def _traced(items: tuple[Item, ...], shape: Shape, fallback: Fallback | None, problems: list[Problem]) -> Trace:
    found: list[Problem] = []
    traced = trace(items, shape, found, fallback, origin="with the samples")
    hint = f"the discriminator is given samples of {text(shape)}; change its layers, or data.input"
    problems += (replace(problem, hint=problem.hint or hint) for problem in found)
    return traced


def _quantizers(items: tuple[Item, ...]) -> list[Problem]:
    """A problem for every entry whose layer quantizes: it gives no gradient to learn a critic's judgement from."""
    found = {leaf.where: leaf for leaf in leaves(items) if getattr(leaf.bound.spec, "quantizes", False)}
    return [
        Problem(
            f"{leaf.bound.code} quantizes; its codes are no logits, and its loss has no place in a discriminator",
            leaf.where,
            hint="leave it out",
        )
        for leaf in found.values()
    ]
