"""`[model]`: the structures and the bottleneck."""

from __future__ import annotations

from pydantic import Field

from flexvae_cli.config.settings.values import AnyPath, Table


class ModelTable(Table):
    """The autoencoder: two structure files and what stands between them."""

    encoder: AnyPath = Field(description="structure file of the encoder")
    decoder: AnyPath = Field(description="structure file of the decoder")
    bottleneck: str = Field(
        "KL", description="code of the bottleneck: `KL` (variational) or `None` (plain autoencoder)"
    )
    init: AnyPath | None = Field(None, description="a trained model whose weights training starts from")
