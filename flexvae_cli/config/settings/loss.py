"""`[loss]` and `[[loss.term]]`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, JsonValue, SerializerFunctionWrapHandler, model_serializer

from flexvae_cli.config.settings.values import AnyPath, NonNegative, Table, Weight


class TermTable(Table):
    """One more term of the loss; every further key is a parameter of that loss, as `flexvae layers NAME` lists them."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, JsonValue]

    name: str = Field(description="name of the loss: `charbonnier`, `msssim`, `lpips`, or one that a plugin brings")
    weight: Weight = Field(1.0, description="factor on the term")
    start: NonNegative = Field(0, description="the step from which the term counts")
    warmup: NonNegative = Field(0, description="steps over which its weight rises from 0, linearly, from `start` on")
    weights: AnyPath | None = Field(None, description="file of trained weights, for the losses that need one")


class LossTable(Table):
    """`L = alpha * reconstruction + kld_weight * KLD + ssim_metrics * beta * (1 - SSIM) + sparse_metrics * sparse`."""

    reconstruction: str = Field(
        "mse", description="code of the reconstruction loss, as in `mse`, `l1`, `huber_0.1`, `bce`"
    )
    alpha: Weight = Field(1.0, description="weight of the reconstruction loss")
    kld_weight: Weight = Field(
        1e-6, description="weight of the KL divergence (summed over a sample's latent, mean over samples)"
    )
    kld_schedule: Literal["constant", "linear", "cyclical"] = Field(
        "constant",
        description="`linear` raises the KL weight from 0 over `kld_warmup_steps`; `cyclical` does so anew in every "
        "`kld_cycle_steps`",
    )
    kld_warmup_steps: NonNegative = Field(0, description="steps until the KL weight is reached")
    kld_cycle_steps: NonNegative = Field(0, description="`cyclical`: steps of a cycle")
    free_bits: Weight = Field(
        0.0, description="nats per latent element below which a latent channel's KL is not pushed further down"
    )
    kld_target: Annotated[float, Field(gt=0)] | None = Field(
        None, description="rate to hold, in nats per latent element: a controller moves the KL weight from `kld_weight`"
    )
    quantizer_weight: Weight = Field(1.0, description="weight of the quantizers' own losses")
    ssim_metrics: bool = Field(False, description="switches the SSIM term on")
    beta: Weight = Field(0.5, description="weight of the SSIM term")
    sparse_metrics: bool = Field(False, description="switches the sparse term on: mean absolute value of the latent")
    term: Annotated[tuple[TermTable, ...], Field(strict=False)] = Field((), description="more terms, see below")


class LossChanges(LossTable):
    """The keys of `[loss]` that a phase changes; the others stay as they are."""

    @model_serializer(mode="wrap")
    def _given(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in dump(self).items() if key in self.model_fields_set}
