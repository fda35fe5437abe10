"""Which bits each layer gets: the fewest bytes within what quality may cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from flexvae_cli.engine.quantization.sensitivity import Gauge, Layer, Plan
from flexvae_cli.errors import UsageError

TRIES = 6  # plans that are measured whole
Drops = Mapping[str, Mapping[int, float]]
"""What each layer costs by itself: place -> bits -> dB."""


class Choice(NamedTuple):
    """A plan, the dB that it costs as a whole, and what each layer costs by itself."""

    plan: Plan
    drop: float
    drops: Drops


def choose(gauge: Gauge, bits: int | None, budget: float, tell: Callable[[int], object]) -> Choice:
    """Measure every layer by itself, then choose, and measure what was chosen.

    Args:
        gauge: measures the model.
        bits: of every layer; None chooses for each.
        budget: the dB of PSNR that it may cost.
        tell: is told how many layers are measured.

    Raises:
        UsageError: it costs more than it may.
    """
    negligible = budget / (20 * len(gauge.layers))  # of all layers together, a twentieth of the budget
    drops: dict[str, Mapping[int, float]] = {}
    for layer in gauge.layers:
        alone = gauge.drops(layer, negligible) if bits is None else {bits: gauge.drop({layer.place: bits})}
        drops[layer.place] = alone
        tell(len(drops))
    if bits is None:
        return Choice(*best_plan(gauge.layers, drops, budget, gauge.drop), drops)
    plan = {layer.place: bits for layer in gauge.layers}
    drop = gauge.drop(plan)
    if drop > budget:
        what = f"{bits} bits cost {drop:.3f} dB of PSNR, more than the {budget:g} dB allowed"
        raise UsageError(what, hint="take more bits, or --bits auto")
    return Choice(plan, drop, drops)


def plan_bytes(layers: Sequence[Layer], plan: Plan) -> int:
    """The bytes of all layers under a plan; one that it leaves out stays in float32."""
    return sum(layer.sizes[plan.get(layer.place, 32)] for layer in layers)


def greedy_plan(layers: Sequence[Layer], drops: Drops, budget: float) -> Plan:
    """From the most bits down, always where a dB saves the most bytes, as long as the costs add up to the budget.

    Costs in dB of errors that are independent of each other add up to a little less than their sum.

    Args:
        layers: the layers.
        drops: what each costs; the widest codes are those to begin with.
        budget: dB.
    """
    plan = {layer.place: max(drops[layer.place]) for layer in layers}
    spent = sum(_cost(drops, place, bits) for place, bits in plan.items())
    while moves := [
        ((layer.sizes[plan[layer.place]] - layer.sizes[bits]) / max(extra, 1e-9), layer.place, bits, extra)
        for layer in layers
        for bits in drops[layer.place]
        if bits < plan[layer.place] and spent + (extra := _extra(drops, plan, layer.place, bits)) <= budget
    ]:
        _, place, bits, extra = max(moves)
        plan[place], spent = bits, spent + extra
    return plan


def _cost(drops: Drops, place: str, bits: int) -> float:
    """What bits cost; a gain is chance, and no credit for others."""
    return max(0.0, drops[place][bits])


def _extra(drops: Drops, plan: Plan, place: str, bits: int) -> float:
    return _cost(drops, place, bits) - _cost(drops, place, plan[place])


def best_plan(
    layers: Sequence[Layer], drops: Drops, budget: float, drop_of: Callable[[Plan], float]
) -> tuple[Plan, float]:
    """The smallest plan, of some that are measured, that costs no more than the budget as a whole, and what it costs.

    Args:
        layers: the layers.
        drops: what each costs by itself.
        budget: dB.
        drop_of: measures what a plan costs.

    Raises:
        UsageError: not even the widest does.
    """
    best: tuple[Plan, float] | None = None
    tried: list[Plan] = []
    aim = budget
    for _ in range(TRIES):
        plan = greedy_plan(layers, drops, aim)
        if plan in tried:
            break
        tried.append(plan)
        drop = drop_of(plan)
        if drop <= budget and (best is None or plan_bytes(layers, plan) < plan_bytes(layers, best[0])):
            best = plan, drop
        aim *= min(2.0, max(0.25, budget / max(drop, 1e-9))) * (1.0 if drop <= budget else 0.9)
    if best is None:
        widest = greedy_plan(layers, drops, 0.0)
        best = widest, drop_of(widest)
    if best[1] > budget:
        raise UsageError(f"no plan within {budget:g} dB: the widest costs {best[1]:.3f} dB", hint="allow more")
    return best
