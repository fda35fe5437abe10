"""`[optimizer]`, its groups, and `[schedule]`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from flexvae_cli.config.settings.values import Decay, Fraction, NonNegative, Patterns, Positive, Table, Weight

UNUSED_BY_OPTIMIZER = {"sgd": ("betas", "eps"), "rmsprop": (), "adafactor": ("betas", "eps", "momentum")}


def unused_by(name: str) -> tuple[str, ...]:
    """The keys of an optimizer's table that the optimizer of that name makes no use of."""
    return UNUSED_BY_OPTIMIZER.get(name, ("momentum",))


class GroupTable(Table):
    """Parameters that are treated in their own way; of several groups that match, the first counts."""

    match: Patterns = Field(description="patterns of parameter names, as in `encoder.*` or `*.bias`")
    lr_factor: Weight = Field(1.0, description="factor on the learning rate")
    weight_decay: Weight | None = Field(None, description="instead of the optimizer's")


class OptimizerTable(Table):
    """The optimizer and gradient clipping."""

    name: Literal["adamw", "adam", "sgd", "adafactor", "nadam", "radam", "rmsprop"] = Field(
        "adamw", description="the optimizer, as torch ships it"
    )
    lr: Annotated[float, Field(gt=0)] = Field(4e-4, description="learning rate after warm-up")
    betas: Annotated[tuple[Decay, Decay], Field(strict=False)] = Field(
        (0.9, 0.999),
        description="decay of the running means of gradient and squared gradient; `rmsprop` has the second alone",
    )
    eps: Annotated[float, Field(gt=0)] = Field(1e-8, description="added to the denominator")
    momentum: Decay = Field(0.0, description="`sgd` and `rmsprop`: momentum; with `sgd` in Nesterov's form")
    weight_decay: Weight = Field(0.01, description="weight decay; decoupled from the gradient with `adamw`")
    decay_norms_and_biases: bool = Field(False, description="whether parameters of one axis decay as well")
    clip_norm: Weight = Field(1.0, description="largest norm of the whole gradient; 0 switches clipping off")
    group: Annotated[tuple[GroupTable, ...], Field(strict=False)] = Field((), description="exceptions, see below")

    @model_validator(mode="after")
    def _of_use(self) -> OptimizerTable:
        defaults = type(self).model_fields
        given = [key for key in unused_by(self.name) if getattr(self, key) != defaults[key].default]
        if given:
            raise ValueError(f"has {given[0]}, of which {self.name} makes no use; leave it out")
        return self


class DiscriminatorOptimizerTable(OptimizerTable):
    """The discriminator's own optimizer; the schedule is the one of `[schedule]`."""

    lr: Annotated[float, Field(gt=0)] = Field(2e-4, description="learning rate after warm-up")
    betas: Annotated[tuple[Decay, Decay], Field(strict=False)] = Field(
        (0.5, 0.9), description="decay of the running means of gradient and squared gradient"
    )
    weight_decay: Weight = Field(0.0, description="weight decay; decoupled from the gradient with `adamw`")


class ScheduleTable(Table):
    """The learning rate over the steps."""

    name: Literal["constant", "cosine", "step", "one-cycle", "plateau"] = Field(
        "cosine", description="shape of the schedule after warm-up"
    )
    warmup_steps: NonNegative = Field(0, description="steps of linear warm-up from 0")
    step_size: Positive = Field(1000, description="`step`: the rate is multiplied by `gamma` every so many steps")
    gamma: Annotated[float, Field(gt=0, le=1)] = Field(0.5, description="`step` and `plateau`: the factor")
    final: Fraction = Field(0.0, description="`cosine` and `one-cycle`: the last rate, as a fraction of `lr`")
    initial: Fraction = Field(0.04, description="`one-cycle`: the first rate, as a fraction of `lr`")
    peak: Fraction = Field(0.3, description="`one-cycle`: where `lr` is reached, as a fraction of the steps")
    patience: NonNegative = Field(
        5, description="`plateau`: validations without a lower validation loss that are waited for"
    )
    threshold: Fraction = Field(1e-3, description="`plateau`: the part by which the loss must fall to count as lower")

    @model_validator(mode="after")
    def _rise(self) -> ScheduleTable:
        if self.name == "one-cycle" and self.warmup_steps:
            raise ValueError("has warmup_steps, but one-cycle rises by itself; set initial and peak instead")
        return self
