"""The plugin: one hook that returns every quantizer of this package. Importing it does not import torch.

A layer that quantizes is a bottleneck as well: `[model] bottleneck = "VQ_1024_4"`.
"""

from __future__ import annotations

from flexvae_cli.api import LayerSpec, hookimpl
from flexvae_layers_quantize import scalar_codes, vector_codes

FLEXVAE_API = 1


@hookimpl
def flexvae_layers() -> list[LayerSpec]:
    return [*vector_codes.LAYERS, *scalar_codes.LAYERS]
