"""The keys of `[loss]` that steer the KL divergence: which of them go together."""

from __future__ import annotations

from collections.abc import Iterator

from flexvae_cli.config.settings import LossTable
from flexvae_cli.errors import Problem

NEUTRAL = {
    "kld_weight": 0.0,
    "kld_schedule": "constant",
    "kld_warmup_steps": 0,
    "kld_cycle_steps": 0,
    "free_bits": 0.0,
    "kld_target": None,
}
"""What each key may say where there is no KL divergence."""
LEAST_WEIGHT, MOST_WEIGHT = 1e-12, 1e3
"""Between these `kld_target` moves the weight."""


def kl_problems(loss: LossTable, where: str, without: str = "") -> Iterator[Problem]:
    """What is wrong with them: nothing that is set may be without effect.

    Args:
        loss: the table.
        where: what messages call it.
        without: the code of a bottleneck that has no KL divergence, empty where it has.
    """
    if without:
        for key, neutral in NEUTRAL.items():
            if key in loss.model_fields_set and getattr(loss, key) != neutral:
                yield Problem(f"wants a KL bottleneck; this one is {without}", f"{where}.{key}")
        return
    for key, what in (*_schedule(loss), *_target(loss)):
        yield Problem(what, f"{where}.{key}")


def _schedule(loss: LossTable) -> Iterator[tuple[str, str]]:
    schedule, warmup, cycle = loss.kld_schedule, loss.kld_warmup_steps, loss.kld_cycle_steps
    if schedule == "constant" and warmup:
        yield "kld_warmup_steps", "has no effect while kld_schedule is 'constant'; take 'linear' or 'cyclical'"
    if schedule != "constant" and not warmup:
        yield "kld_warmup_steps", f"must be above 0 where kld_schedule is '{schedule}'"
    if schedule != "cyclical" and cycle:
        yield "kld_cycle_steps", f"has no effect while kld_schedule is '{schedule}'; take 'cyclical'"
    if schedule == "cyclical" and not cycle:
        yield "kld_cycle_steps", "must be above 0 where kld_schedule is 'cyclical'"
    if schedule == "cyclical" and 0 < cycle < warmup:
        yield "kld_warmup_steps", f"is longer than a cycle: {warmup} of {cycle} steps"


def _target(loss: LossTable) -> Iterator[tuple[str, str]]:
    target = loss.kld_target
    if target is None:
        return
    if loss.kld_schedule != "constant":
        yield "kld_target", f"moves the KL weight, and so does kld_schedule = '{loss.kld_schedule}'; leave one out"
    if not LEAST_WEIGHT <= loss.kld_weight <= MOST_WEIGHT:
        yield "kld_weight", f"is where kld_target begins: it must be from {LEAST_WEIGHT:g} to {MOST_WEIGHT:g}"
    if loss.free_bits >= target:
        yield "free_bits", f"is {loss.free_bits:g}, so no rate is pushed down to kld_target = {target:g}"
