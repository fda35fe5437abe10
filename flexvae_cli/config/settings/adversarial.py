"""`[adversarial]`: the discriminator and what trains against it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from flexvae_cli.config.settings.optimizer import DiscriminatorOptimizerTable
from flexvae_cli.config.settings.values import AnyPath, NonNegative, Positive, Table, Weight


class AdversarialTable(Table):
    """Adversarial training: a discriminator learns to tell reconstructions from samples, the autoencoder to pass."""

    discriminator: AnyPath = Field(description="structure file of the discriminator; its output is a map of logits")
    loss: Literal["hinge", "non-saturating", "least-squares"] = Field("hinge", description="the adversarial loss")
    weight: Weight = Field(0.5, description="weight of the autoencoder's adversarial loss")
    adaptive: bool = Field(
        True,
        description="multiplies the weight by the ratio of the gradient norms of the other losses and of the "
        "adversarial one at the decoder's last layer",
    )
    max_weight: Annotated[float, Field(gt=0)] = Field(1e4, description="`adaptive`: largest ratio")
    start: NonNegative = Field(0, description="the step from which discriminator and adversarial loss take part")
    r1: Weight = Field(
        0.0, description="weight of the R1 penalty: squared gradient norm of the discriminator at samples"
    )
    r1_every: Positive = Field(16, description="steps between R1 penalties, each weighted by so many")
    lecam: Weight = Field(0.0, description="weight of the LeCam regularization")
    optimizer: DiscriminatorOptimizerTable = DiscriminatorOptimizerTable()
