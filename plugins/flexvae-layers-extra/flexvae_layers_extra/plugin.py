"""The plugin: one hook that returns every layer of this package. Importing it does not import torch."""

from __future__ import annotations

from flexvae_cli.api import LayerSpec, hookimpl
from flexvae_layers_extra import (
    activations,
    attention,
    convolutions,
    filters,
    normalisation,
    padding,
    regularisation,
    resampling,
    residual,
    scaling,
    sequences,
    transformer,
)

FLEXVAE_API = 1


@hookimpl
def flexvae_layers() -> list[LayerSpec]:
    return [
        *activations.LAYERS,
        *attention.LAYERS,
        *convolutions.LAYERS,
        *filters.LAYERS,
        *normalisation.LAYERS,
        *padding.LAYERS,
        *regularisation.LAYERS,
        *resampling.LAYERS,
        *residual.LAYERS,
        *scaling.LAYERS,
        *sequences.LAYERS,
        *transformer.LAYERS,
    ]
