"""The plugin: one hook that returns every layer of this package. Importing it does not import torch."""

from __future__ import annotations

from flexvae_cli.api import LayerSpec, hookimpl
from flexvae_layers_extra import activations, convolutions, normalisation, regularisation, resampling

FLEXVAE_API = 1


@hookimpl
def flexvae_layers() -> list[LayerSpec]:
    return [
        *activations.LAYERS,
        *convolutions.LAYERS,
        *normalisation.LAYERS,
        *regularisation.LAYERS,
        *resampling.LAYERS,
    ]
