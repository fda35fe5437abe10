"""`flexvae config explain-loss`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from flexvae_cli import ui
from flexvae_cli.commands._loaded import loaded_config
from flexvae_cli.commands.options import ConfigOption, JsonOption, SetOption

if TYPE_CHECKING:
    from flexvae_cli.objective import Term
    from flexvae_cli.phases import Phase
    from flexvae_cli.plan import Plan
    from flexvae_cli.weighing import Weighed

FACTORS = {
    "per_pixel": "per pixel",
    "per_latent": "per latent",
    "per_sample": "per sample",
    "beside_sums": "as sums",
    "beside_means": "as means",
}
NOTES = """
per pixel, latent, sample: the factor on the value of one element of a sample, of its latent, of a whole sample
as sums: the weight beside a reconstruction of weight 1, in papers that sum both over a sample's elements
as means: the same, in papers that average both"""


def explain_loss(config: ConfigOption = None, overrides: SetOption = None, as_json: JsonOption = False) -> None:
    """Tell what the weights of the loss amount to.

    For every term its weight, what it sums or averages over, and the weights that papers would give it that sum or
    average otherwise.
    """
    from flexvae_cli.plan import make_plan

    plan = make_plan(loaded_config(config, overrides))
    explained = [_explained(plan, phase) for phase in plan.phases]
    if as_json:
        ui.json({"phases": explained})
        return
    for number, phase in enumerate(explained):
        _print(phase, number)
    ui.data(NOTES)


def _explained(plan: Plan, phase: Phase) -> dict[str, Any]:
    """A phase as plain values."""
    import math

    from flexvae_cli.api.trace import text
    from flexvae_cli.weighing import weighed

    latent = replace(plan.net, shape=phase.shape).latent_shape
    return {
        "start": phase.start,
        "input": text(phase.shape),
        "elements": math.prod(phase.shape),
        "latent": text(latent),
        "latent_elements": math.prod(latent),
        "terms": [_term(each) for each in weighed(phase.terms, phase.shape, latent)],
    }


def _term(each: Weighed) -> dict[str, Any]:
    return {
        "term": each.term.name,
        "code": each.term.bound.code,
        "weight": each.term.weight,
        "steps": _course(each.term),
        "reduction": each.reduction,
        **{factor: getattr(each, factor) for factor in FACTORS},
    }


def _course(term: Term) -> str:
    """What the weight does over the steps."""
    if term.target is not None:
        return f"moved to hold {term.target:g} nats per latent element"
    return str(term.ramp)


def _print(phase: dict[str, Any], number: int) -> None:
    if number:
        ui.data(f"\nfrom step {phase['start']} on:")
    ui.data(
        "a sample has {elements:,} elements ({input}), its latent {latent_elements:,} ({latent})\n".format_map(phase)
    )
    columns = (
        ui.Column("term"),
        ui.Column("code", shrink=True, optional=2),
        ui.Column("weight", number=True),
        ui.Column("steps", wrap=True, optional=3),
        ui.Column("reduction"),
        *(ui.Column(title, number=True, optional=title.startswith("per")) for title in FACTORS.values()),
    )
    ui.table(columns, [_cells(term) for term in phase["terms"]])


def _cells(term: dict[str, Any]) -> tuple[str, ...]:
    factors = (term[name] for name in FACTORS)
    return (
        term["term"],
        term["code"],
        f"{term['weight']:.4g}",
        term["steps"],
        term["reduction"] or "unstated",
        *("" if factor is None else f"{factor:.4g}" for factor in factors),
    )
