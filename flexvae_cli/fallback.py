"""Layers without a static rule: the one place where the light half reaches for the engine, and only when one occurs."""

from __future__ import annotations

from flexvae_cli.api.trace import Shape, Step
from flexvae_cli.codes import Bound
from flexvae_cli.tracing import Fallback


def meta_fallback() -> Fallback:
    """Measures layers on torch's meta device, each once per shape; torch is imported when the first one comes."""
    known: dict[tuple[str, Shape], Step] = {}

    def measure(bound: Bound, shape: Shape) -> Step:
        from flexvae_cli.engine.build import meta_step

        if (bound.code, shape) not in known:
            known[bound.code, shape] = meta_step(bound, shape)
        return known[bound.code, shape]

    return measure
